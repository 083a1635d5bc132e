#!/usr/bin/env bash
# What launch/tpu_vm.sh does on every worker of a TPU, in the repository's root there:
#
#   setup          an environment with sora-jax for TPU, and the bucket $BUCKET mounted at /data
#   start VERB …   launch/restart.sh VERB … in the background; its output goes to runs/worker.log
#   status         running, ended CODE, idle (set up, or restarted by the system), or new
#   stop           asks the verb to save and end, and waits for it
#
# When the machine is taken away the system sends SIGTERM, and the verb saves if its half minute is enough.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/supervise.sh
source launch/supervise.sh

PID=runs/worker.pid CODE=runs/worker.code LOG=runs/worker.log READY=runs/worker.ready
mkdir -p runs

mount_bucket() {
  if ! command -v gcsfuse > /dev/null; then
    local key="/usr/share/keyrings/cloud.google.asc" packages="https://packages.cloud.google.com/apt"
    curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
    sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
  fi
  sudo mkdir -p /data && sudo chown "$(id -u)" /data
  mountpoint -q /data || gcsfuse --implicit-dirs "$1" /data
}

# The images of TPU VMs come with Python 3.10; uv brings a newer one.
setup() {
  command -v uv > /dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
  PATH="$HOME/.local/bin:$PATH"
  test -x .venv/bin/python || uv venv --python 3.12 .venv
  uv pip install --python .venv/bin/python -e ".[tpu]"
  [ -z "${BUCKET:-}" ] || mount_bucket "$BUCKET"
  touch "$READY"
}

is_running() {
  [ -f "$PID" ] && kill -0 "$(cat "$PID")" 2> /dev/null
}

start() {
  if is_running; then
    echo "tpu_vm_worker.sh: a verb runs here already (process $(cat "$PID")); stop it first" >&2
    exit "$EXIT_USER_ERROR"
  fi
  rm -f "$CODE"
  # In a session of its own, it outlives the connection that started it.
  nohup setsid launch/tpu_vm_worker.sh run "$@" < /dev/null >> "$LOG" 2>&1 &
  echo "$!" > "$PID"
}

# run VERB …: the other half of start, in the background.
run() {
  export PATH="$PWD/.venv/bin:$PATH"
  launch/restart.sh "$@" &
  local child=$!
  # shellcheck disable=SC2064
  trap "signalled=1; kill -TERM $child" TERM
  wait_for "$child"
  # shellcheck disable=SC2154
  echo "$code" > "$CODE"
}

status() {
  if is_running; then
    echo running
  elif [ -f "$CODE" ]; then
    echo "ended $(cat "$CODE")"
  elif [ ! -f "$READY" ]; then
    echo new
  else
    echo idle
  fi
}

stop() {
  ! is_running || kill -TERM "$(cat "$PID")"
  while is_running; do sleep 0.2; done
}

verb="${1:-}"
shift || true
case "$verb" in
  setup | start | run | status | stop) "$verb" "$@" ;;
  *) echo "tpu_vm_worker.sh: '$verb' is none of setup, start, status, stop" >&2 && exit "$EXIT_USER_ERROR" ;;
esac
