#!/usr/bin/env bash
# One verb on this machine that outlives crashes:  launch/restart.sh train --config configs/X.py --workdir DIR
#
# Starts the verb again on every exit code except 0 (finished) and 2 (a user's error), after 2, 4, 8, … seconds.
# A start that committed a newer checkpoint in --workdir, or went on from a newer one (in the fast tier), is progress and
# sets the count and the wait back; after MAX_RESTARTS restarts in a row without progress the last exit code is passed
# on. SIGTERM and Ctrl-C are forwarded once: the verb saves, and its exit code 75 is passed on without another start.
#
#   MAX_RESTARTS=5    restarts in a row without progress
#   BACKOFF_S=2       the first wait; it doubles up to BACKOFF_MAX_S=60
#   PROCESSES=1       so many processes on this machine (launch/processes.sh)
#   DRY_RUN=1         prints the command instead
set -euo pipefail

HERE="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"

MAX_RESTARTS="${MAX_RESTARTS:-5}"
BACKOFF_S="${BACKOFF_S:-2}"
BACKOFF_MAX_S="${BACKOFF_MAX_S:-60}"
PROCESSES="${PROCESSES:-1}"
require_count MAX_RESTARTS "$MAX_RESTARTS" 0
require_count BACKOFF_S "$BACKOFF_S" 0
require_count BACKOFF_MAX_S "$BACKOFF_MAX_S" 0
require_count PROCESSES "$PROCESSES" 1

say() {
  echo "restart.sh: $*" >&2
}

require_verb "$@"

command=("$HERE/local.sh" "$@")
[ "$PROCESSES" -eq 1 ] || command=("$HERE/processes.sh" "$PROCESSES" "$@")
workdir="$(value_of --workdir "$@")"

if [ -n "${DRY_RUN:-}" ]; then
  show "${command[@]}"
  exit 0
fi

asked="" child="" pause=""

# The child may end before the trap has run, and the wait before a start is cut short too.
stop() {
  signalled=1
  [ -z "$asked" ] || return 0
  asked=1
  [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
  [ -z "$pause" ] || kill "$pause" 2> /dev/null || true
}
trap stop TERM INT

restarts=0 wait_s="$BACKOFF_S"
while :; do
  before="$(newest_checkpoint "$workdir")"
  "${command[@]}" &
  child=$!
  [ -z "$asked" ] || kill -TERM "$child" # asked between two starts
  wait_for "$child"
  child=""
  if [ -n "$asked" ]; then
    # 143: the signal came before the verb could catch it, so nothing was under way.
    [ "$code" -ne 143 ] || code="$EXIT_PREEMPTED"
    say "asked to stop; the verb ended with code $code"
    exit "$code"
  fi
  worth_another_start "$code" || exit "$code"
  after="$(newest_checkpoint "$workdir")"
  if [ "$after" -gt "$before" ]; then
    restarts=0 wait_s="$BACKOFF_S"
  fi
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    say "exit code $code after $restarts restarts in a row without a new checkpoint (MAX_RESTARTS=$MAX_RESTARTS); giving up"
    exit "$code"
  fi
  restarts=$((restarts + 1))
  say "exit code $code, newest checkpoint $after; restart $restarts of $MAX_RESTARTS in $wait_s s"
  sleep "$wait_s" &
  pause=$!
  wait_for "$pause"
  pause=""
  [ -z "$asked" ] || exit "$EXIT_PREEMPTED"
  wait_s=$((wait_s * 2 > BACKOFF_MAX_S ? BACKOFF_MAX_S : wait_s * 2))
done
