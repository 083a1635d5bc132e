#!/usr/bin/env bash
# One verb of sora-jax on this machine:  launch/local.sh train --config configs/X.py --workdir DIR
#
#   SORA_PROGRAM=sora-jax   what runs in its place, such as "apptainer exec IMAGE sora-jax"
#   DRY_RUN=1               prints the command instead
#
# On a CPU, XLA allocates afresh each step, and the kernel's page faults take up to half of the time of a training
# step. These three settings make glibc keep what it got: no trimming, no mmap for big blocks, one arena.
set -euo pipefail

HERE="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"

settings=(
  "MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1}"
  "MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}"
  "MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-9000000000}"
  "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}"
)
# Under srun only the task itself knows which of the job's processes it is (launch/slurm.sbatch says how many there are).
if [ -n "${SORA_NUM_PROCESSES:-}" ] && [ -n "${SLURM_PROCID:-}" ]; then
  settings+=("SORA_PROCESS_ID=${SORA_PROCESS_ID:-$SLURM_PROCID}")
fi
read -r -a program <<< "${SORA_PROGRAM:-sora-jax}"
command=("${program[@]}" "$@")

if [ -n "${DRY_RUN:-}" ]; then
  show env "${settings[@]}" "${command[@]}"
  exit 0
fi
export "${settings[@]}"
exec "${command[@]}"
