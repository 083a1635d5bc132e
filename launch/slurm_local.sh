#!/usr/bin/env bash
# A Slurm cluster to practise on, with several node daemons on this one machine:
#
#   launch/slurm_local.sh start DIR     # writes DIR/slurm.conf and starts munged, slurmctld and NODES slurmds
#   export SLURM_CONF=DIR/slurm.conf    # for sbatch, squeue, scontrol and scancel
#   launch/slurm_local.sh stop DIR      # cancels every job and ends every daemon
#
# NODES (2) daemons of CPUS_PER_NODE (1) each, named n1, n2, …. A job of the partition urgent (sbatch
# --partition=urgent) preempts those of the default one, main: they get SIGTERM, and GRACE_TIME_S (30) later are killed
# and requeued. Needs the programs of Debian's packages: apt-get install --no-install-recommends slurm-wlm munge. All of
# its state is in DIR, so several can run side by side.
set -euo pipefail

NODES="${NODES:-2}"
CPUS_PER_NODE="${CPUS_PER_NODE:-1}"
# How long a job may take to save when it is told to end. Slurm's own default is 30.
KILL_WAIT_S="${KILL_WAIT_S:-30}"
# And when another preempts it.
GRACE_TIME_S="${GRACE_TIME_S:-30}"

PATH="$PATH:/usr/sbin:/sbin"

fail() {
  echo "slurm_local.sh: $*" >&2
  exit 2
}

# free_ports N: N ports that nothing listens on, and that the system gives to nobody by itself.
free_ports() {
  local found=0 port
  while [ "$found" -lt "$1" ]; do
    port=$((10000 + (RANDOM * 32768 + RANDOM) % 22000))
    if ! (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      echo "$port"
      found=$((found + 1))
    fi
  done
}

# configure DIR: writes slurm.conf for this machine.
configure() {
  local dir="$1" host ports i
  host="$(hostname -s)"
  mapfile -t ports < <(free_ports $((NODES + 1)))
  cat > "$dir/slurm.conf" << CONF
ClusterName=practice
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
ReturnToService=2
SlurmctldPort=${ports[0]}
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmdLogFile=$dir/slurmd.%n.log
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
KillWait=$KILL_WAIT_S
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=$GRACE_TIME_S MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
  for ((i = 1; i <= NODES; i++)); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[i]} CPUs=$CPUS_PER_NODE" >> "$dir/slurm.conf"
  done
}

start() {
  local dir="$1" i
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" > /dev/null \
      || fail "there is no $program here; install it: apt-get install --no-install-recommends slurm-wlm munge"
  done
  getent hosts "$(hostname -s)" > /dev/null \
    || fail "this machine's name $(hostname -s) has no address; add '127.0.0.1 $(hostname -s)' to /etc/hosts"
  [ ! -e "$dir/munge.sock" ] || fail "a cluster runs in $dir already; stop it first: launch/slurm_local.sh stop $dir"
  mkdir -p "$dir/state"
  configure "$dir"
  (umask 377 && head -c 1024 /dev/urandom > "$dir/munge.key.new" && mv -f "$dir/munge.key.new" "$dir/munge.key")
  munged --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" --force 2>> "$dir/munged.log"
  export SLURM_CONF="$dir/slurm.conf"
  slurmctld -i
  for ((i = 1; i <= NODES; i++)); do
    slurmd -N "n$i"
  done
  for ((i = 0; i < 120; i++)); do
    [ "$(sinfo --noheader --Node --states=idle 2> /dev/null | wc -l)" -lt "$NODES" ] || break
    sleep 0.25
  done
  [ "$i" -lt 120 ] || fail "the nodes were not idle after 30 s; see $dir/slurmctld.log and $dir/slurmd.n1.log"
  echo "$NODES nodes are idle. Use them with: export SLURM_CONF=$SLURM_CONF"
}

# end FILE: ends the daemon whose process id is in FILE, and waits for it.
end() {
  local pid i
  pid="$(cat "$1" 2> /dev/null)" || return 0
  kill "$pid" 2> /dev/null || true
  for ((i = 0; i < 100; i++)); do
    kill -0 "$pid" 2> /dev/null || break
    [ "$i" -ne 80 ] || kill -KILL "$pid" 2> /dev/null || true
    sleep 0.1
  done
  rm -f "$1"
}

stop() {
  local dir="$1" i file
  [ -f "$dir/slurm.conf" ] || fail "there is no cluster in $dir"
  export SLURM_CONF="$dir/slurm.conf"
  if scancel --quiet --user="$(id -un)" 2> /dev/null; then
    scancel --quiet --full --signal=KILL --user="$(id -un)" 2> /dev/null || true
    for ((i = 0; i < 80; i++)); do
      [ -n "$(squeue --noheader 2> /dev/null)" ] || break
      sleep 0.25
    done
  fi
  for file in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    end "$file"
  done
  rm -f "$dir/munge.sock" "$dir/munge.sock.lock"
}

[ "$#" -eq 2 ] || fail "usage: launch/slurm_local.sh start|stop DIR"
mkdir -p "$2"
DIR="$(cd "$2" && pwd)"
case "$1" in
  start) start "$DIR" ;;
  stop) stop "$DIR" ;;
  *) fail "'$1' is none of start, stop" ;;
esac
