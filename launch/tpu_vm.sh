#!/usr/bin/env bash
# One verb on TPU VMs, through queued resources and gcloud:
#
#   export NAME=dit-xl ZONE=us-east5-a ACCELERATOR=v5p-16 RUNTIME=v2-alpha-tpuv5 SPOT=1 BUCKET=my-bucket
#   launch/tpu_vm.sh supervise train --config configs/X.py --workdir /data/runs/X
#
#   create          asks for the machines
#   setup           puts the repository at REF on every worker, an environment, and the bucket at /data
#   start VERB …    starts the verb on every worker; each restarts it after a crash (launch/restart.sh)
#   status          of the resource, and of the verb on every worker
#   logs            the end of runs/worker.log on every worker
#   stop            asks the verb to save and end (a supervisor would start it again: end that first)
#   supervise VERB …  all of it: creates, sets up and starts, and does so again when the machines are taken away, until the
#                   verb has finished. Ended by Ctrl-C it leaves the run alone, and started again it takes it up
#   delete          gives the machines back
#
#   NAME, ZONE, ACCELERATOR, RUNTIME   as gcloud names them; PROJECT if it is not gcloud's own
#   SLICES=1                           more are one Multislice run
#   SPOT=1 or RESERVED=1               the kind of capacity, else on demand
#   REPOSITORY, REF                    what is cloned: by default this clone's origin at its HEAD
#   BUCKET                             where runs live, at /data: machines that are taken away take their disks along
#   POLL_S=60, MAX_RESTARTS=100        of supervise; a restart is new machines, or a new start on all of them
#   DRY_RUN=1                          prints every command instead, and needs no gcloud
set -euo pipefail

HERE="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
# shellcheck disable=SC2153
: "${NAME:=}"

say() {
  echo "tpu_vm.sh: $*" >&2
}

require_count SLICES "${SLICES:=1}" 1
require_count POLL_S "${POLL_S:=60}" 0
require_count MAX_RESTARTS "${MAX_RESTARTS:=100}" 0
require NAME ZONE
WORKER="sora_jax/launch/tpu_vm_worker.sh"
where=("--zone=$ZONE")
[ -z "${PROJECT:-}" ] || where+=("--project=$PROJECT")

# resource VERB WORD…: one command of gcloud about queued resources.
resource() {
  run_or_show gcloud compute tpus queued-resources "$@" "${where[@]}"
}

# everywhere LINE: a line for the shell of every worker of every slice.
everywhere() {
  resource ssh "$NAME" --node=all --worker=all "--command=$1"
}

# worker WORD…: a command of launch/tpu_vm_worker.sh, as a line for the workers' shell.
worker() {
  show bash "$WORKER" "$@"
}

create() {
  require ACCELERATOR RUNTIME
  local kind=() nodes=("--node-id=$NAME")
  [ -z "${SPOT:-}" ] || kind+=(--spot)
  [ -z "${RESERVED:-}" ] || kind+=(--reserved)
  [ "$SLICES" -eq 1 ] || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
  resource create "$NAME" "${nodes[@]}" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" "${kind[@]}"
}

setup() {
  local fetch checkout="git -C sora_jax checkout --quiet --detach FETCH_HEAD"
  : "${REPOSITORY:=$(git -C "$HERE" remote get-url origin)}" "${REF:=$(git -C "$HERE" rev-parse HEAD)}"
  require REPOSITORY REF
  fetch="test -d sora_jax || $(show git clone --quiet "$REPOSITORY" sora_jax)"
  fetch="{ $fetch; } && $(show git -C sora_jax fetch --quiet origin "$REF") && $checkout"
  everywhere "$fetch && $(show env "BUCKET=${BUCKET:-}" bash "$WORKER" setup)"
}

start() {
  require_verb "$@"
  everywhere "$(worker start "$@")"
}

# state: of the queued resource (ACTIVE, SUSPENDED, …); nothing if there is none. Fails when gcloud cannot be asked.
state() {
  local errors code=0
  errors="$(mktemp)"
  resource describe "$NAME" "--format=value(state.state)" 2> "$errors" || code=$?
  if [ "$code" -ne 0 ] && grep -q NOT_FOUND "$errors"; then
    code=0
  else
    cat "$errors" >&2
  fi
  rm "$errors"
  return "$code"
}

# progress: what the verb does on every worker, a line for each; new on one that was never set up.
progress() {
  everywhere "test -f $WORKER || exec echo new; $(worker status)"
}

status() {
  state
  everywhere "$(worker status)"
}

logs() {
  everywhere "tail -n 20 sora_jax/runs/worker.log"
}

# A worker may be new, and have nothing to stop.
stop() {
  everywhere "test ! -f $WORKER || $(worker stop)"
}

delete() {
  resource delete "$NAME" --force --quiet
}

# count_restart WHY: one more of the MAX_RESTARTS, or the end.
count_restart() {
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    say "$1 again after $restarts restarts (MAX_RESTARTS=$MAX_RESTARTS); giving up"
    exit "$EXIT_HOST_LOST"
  fi
  restarts=$((restarts + 1))
  say "$1; restart $restarts of $MAX_RESTARTS"
}

# follow STATES VERB …: what follows from the states of the workers, one on each line and none twice.
follow() {
  local states="$1" lost
  shift
  if [ "$states" = running ]; then
    return 0
  elif [ "$states" = new ]; then
    setup && start "$@"
    return
  elif grep -qx "ended $EXIT_USER_ERROR" <<< "$states"; then
    stop || true
    exit "$EXIT_USER_ERROR"
  fi
  # A worker may have been restarted, or its verb stopped from outside. The others are stopped, for a common start.
  lost="$(grep -Ex "new|idle|ended ($EXIT_PREEMPTED|$EXIT_HOST_LOST)" <<< "$states" | head -n 1 || true)"
  if [ -n "$lost" ]; then
    count_restart "the verb of a worker is $lost"
    stop && setup && start "$@"
  elif ! grep -qx running <<< "$states"; then
    exit "${states##*ended }" # sorted, so that 0 is the last only if all are
  fi
}

# look VERB …: one look at the machines and the verb, and what follows from it.
look() {
  local found
  found="$(state)" || return 0 # gcloud could not be asked: the next look will tell
  case "$found" in
    "") create ;;
    SUSPENDED | FAILED)
      count_restart "the machines are $found"
      delete && create
      ;;
    ACTIVE)
      # gcloud itself says more than the workers do.
      if found="$(progress 2> /dev/null | grep -Ex 'new|idle|running|ended [0-9]+' | sort -u)"; then
        follow "$found" "$@"
      else
        say "not every worker answers"
      fi
      ;;
    *) say "$NAME is $found" ;;
  esac
}

supervise() {
  require_verb "$@"
  require_lasting /data "$@"
  [ -z "$(value_of --workdir "$@")" ] || require BUCKET # without one, /data is the machine's own disk
  restarts=0
  if [ -n "${DRY_RUN:-}" ]; then
    state && create && setup && start "$@" && progress
    say "and, when the machines are taken away:"
    delete
    return
  fi
  while :; do
    look "$@" || say "that failed; trying again in $POLL_S s"
    sleep "$POLL_S"
  done
}

verb="${1:-}"
shift || true
case "$verb" in
  create | setup | start | status | logs | stop | supervise | delete) "$verb" "$@" ;;
  *)
    say "'$verb' is none of create, setup, start, status, logs, stop, supervise, delete"
    exit "$EXIT_USER_ERROR"
    ;;
esac
