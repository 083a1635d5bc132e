#!/usr/bin/env bash
# One verb in N processes on this machine, as if each were a host:  launch/processes.sh 2 train --config … --workdir …
#
# Each process gets SORA_COORDINATOR (127.0.0.1 and a free port, or what is set already), SORA_NUM_PROCESSES and
# SORA_PROCESS_ID. Lines of process 1 start with "[1] ", and so on; stdout is process 0's alone, without a prefix, so that
# its last line is the verb's JSON; everything else goes to stderr. When a process fails, the others are asked to stop,
# and killed GRACE_S (60) seconds later; the exit code is that of the first to fail. SIGTERM and Ctrl-C are forwarded
# once to all. DRY_RUN=1 prints the commands instead.
set -euo pipefail

HERE="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"

GRACE_S="${GRACE_S:-60}"
require_count GRACE_S "$GRACE_S" 0

if [ "$#" -lt 2 ]; then
  echo "processes.sh: name the number of processes and a verb: launch/processes.sh 2 train --config … --workdir …" >&2
  exit "$EXIT_USER_ERROR"
fi
require_count "the number of processes" "$1" 1
num_processes="$1"
shift

# free_port: one that nothing uses at the moment.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

export SORA_NUM_PROCESSES="$num_processes"
export SORA_COORDINATOR="${SORA_COORDINATOR:-127.0.0.1:$(free_port)}"

if [ -n "${DRY_RUN:-}" ]; then
  for ((i = 0; i < num_processes; i++)); do
    show env "SORA_COORDINATOR=$SORA_COORDINATOR" "SORA_NUM_PROCESSES=$num_processes" "SORA_PROCESS_ID=$i" "$HERE/local.sh" "$@"
  done
  exit 0
fi

# prefix NUMBER: stdin to stdout, line by line.
prefix() {
  exec sed -u "s/^/[$1] /"
}

running=()
for ((i = 0; i < num_processes; i++)); do
  if [ "$i" -eq 0 ]; then
    SORA_PROCESS_ID="$i" "$HERE/local.sh" "$@" 2> >(prefix "$i" >&2) &
  else
    SORA_PROCESS_ID="$i" "$HERE/local.sh" "$@" > >(prefix "$i" >&2) 2>&1 &
  fi
  running+=("$!")
done

asked="" timer=""

# ask_all: SIGTERM to every process, and a clock for those that do not heed it.
ask_all() {
  [ -z "$asked" ] || return 0
  asked=1
  kill -TERM "${running[@]}" 2> /dev/null || true
  sleep "$GRACE_S" > /dev/null 2>&1 &
  timer=$!
}

# shellcheck disable=SC2329
stop() {
  ask_all
}
trap stop TERM INT

# without PID PID…: the others.
without() {
  local pid="$1" other
  shift
  for other in "$@"; do
    [ "$other" -eq "$pid" ] || echo "$other"
  done
}

# Processes are waited for in the order in which they end; a failure ends the others.
first_failure=0
while [ "${#running[@]}" -gt 0 ]; do
  ended="" code=0
  wait -n -p ended "${running[@]}" $timer || code=$?
  [ -n "${ended:-}" ] || continue # `wait` unsets it: a signal came, and nobody has ended
  if [ "$ended" = "$timer" ]; then
    timer=""
    kill -KILL "${running[@]}" 2> /dev/null || true
    continue
  fi
  mapfile -t running < <(without "$ended" "${running[@]}")
  if [ "$code" -ne 0 ] && [ "$first_failure" -eq 0 ]; then
    first_failure="$code"
    if [ -z "$asked" ] && [ "${#running[@]}" -gt 0 ]; then
      echo "processes.sh: a process ended with code $code; asking the other ${#running[@]} to stop" >&2
      ask_all
    fi
  fi
done
[ -z "$timer" ] || kill "$timer" 2> /dev/null || true
exit "$first_failure"
