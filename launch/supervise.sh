# What the launchers share; sourced by restart.sh, processes.sh, slurm.sbatch and tpu_vm.sh, never run.
#
# Exit codes of a verb: 0 finished, 2 a user's error, 75 asked to stop and saved, 76 a host was lost or hung; anything
# else is a crash. Everything but 0 and 2 is worth another start.
# shellcheck shell=bash disable=SC2034

EXIT_USER_ERROR=2
EXIT_PREEMPTED=75
EXIT_HOST_LOST=76

# worth_another_start CODE
worth_another_start() {
  [ "$1" -ne 0 ] && [ "$1" -ne "$EXIT_USER_ERROR" ]
}

# value_of OPTION WORD…: what `OPTION VALUE` or `OPTION=VALUE` says among the words; nothing if it is not there.
value_of() {
  local option="$1" word next=""
  shift
  for word in "$@"; do
    [ -z "$next" ] || { echo "$word" && return; }
    case "$word" in
      "$option") next=1 ;;
      "$option"=*) echo "${word#*=}" && return ;;
    esac
  done
}

# newest_checkpoint RUN: the newest committed step that shows in the run directory, -1 if there is none. It is a folder in
# RUN/checkpoints whose name is a plain number, or the step from which the last start went on (RUN/starts.jsonl): with
# config.train.fast_dir that step may be in the fast tier alone, which a launcher need not see.
newest_checkpoint() {
  local newest step folder
  newest="$(sed -n 's/^{"time": [^,]*, "step": \([0-9]*\),.*/\1/p' "$1/starts.jsonl" 2> /dev/null | tail -n 1 || true)"
  [ "${newest:-0}" -gt 0 ] || newest=-1 # a start from 0 has found none
  for folder in "$1"/checkpoints/*/; do
    step="$(basename "$folder")"
    if [[ -d "$folder" && "$step" =~ ^[0-9]+$ && "$step" -gt "$newest" ]]; then
      newest="$step"
    fi
  done
  echo "$newest"
}

# wait_for PID: waits for a child through any number of trapped signals, and sets `code` to its exit code. A trap that
# wants the waiting to go on sets `signalled`.
wait_for() {
  local again
  signalled="" code=0
  wait "$1" || code=$?
  while [ -n "$signalled" ]; do
    signalled="" again=0
    wait "$1" || again=$?
    [ "$again" -eq 127 ] || code="$again" # 127: it had ended before the signal, and its code is known
  done
}

# show WORD…: one command as a shell would read it.
show() {
  local word line="" plain='^[A-Za-z0-9_./:=@%+,-]+$'
  for word in "$@"; do
    [[ "$word" =~ $plain ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# run_or_show WORD…: runs one command, or prints it if DRY_RUN is set.
run_or_show() {
  if [ -n "${DRY_RUN:-}" ]; then show "$@"; else "$@"; fi
}

# require NAME…: variables of the environment that must be set, or exit 2 naming all that are not.
require() {
  local name missing=""
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing="$missing $name"
  done
  if [ -n "$missing" ]; then
    echo "$(basename "$0"): set$missing in the environment; the top of $0 says what they are" >&2
    exit "$EXIT_USER_ERROR"
  fi
}

# require_verb WORD…: at least one word, or exit 2.
require_verb() {
  if [ "$#" -eq 0 ]; then
    echo "$(basename "$0"): name a verb, such as: train --config configs/X.py --workdir DIR" >&2
    exit "$EXIT_USER_ERROR"
  fi
}

# require_lasting FOLDER WORD…: a --workdir among the words lies in FOLDER, which outlives the machines, or exit 2.
require_lasting() {
  local folder="$1" workdir
  shift
  workdir="$(value_of --workdir "$@")"
  case "$workdir" in
    "" | "$folder"/*) ;;
    *)
      echo "$(basename "$0"): --workdir $workdir would be lost with its machine; it must lie on the storage that outlives it," \
        "under $folder/" >&2
      exit "$EXIT_USER_ERROR"
      ;;
  esac
}

# require_count NAME VALUE LEAST: a whole number in a variable of the environment, or exit 2.
require_count() {
  if ! [[ "$2" =~ ^[0-9]+$ ]] || [ "$2" -lt "$3" ]; then
    echo "$(basename "$0"): $1 is '$2', but must be a whole number of at least $3" >&2
    exit "$EXIT_USER_ERROR"
  fi
}
