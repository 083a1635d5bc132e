#!/usr/bin/env bash
# One verb of sora-jax on this machine:  launch/local.sh train --config configs/X.py --workdir DIR
#
# On a CPU, XLA allocates afresh each step, and the kernel's page faults take up to half of the time of a training
# step. These three settings make glibc keep what it got: no trimming, no mmap for big blocks, one arena.
set -euo pipefail
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-1}"
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-9000000000}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# Under srun only the task itself knows which of the job's processes it is (launch/slurm.sbatch says how many there are).
if [ -n "${SORA_NUM_PROCESSES:-}" ] && [ -n "${SLURM_PROCID:-}" ]; then
  export SORA_PROCESS_ID="${SORA_PROCESS_ID:-$SLURM_PROCID}"
fi
# SORA_PROGRAM: what runs in place of sora-jax, such as "apptainer exec IMAGE sora-jax". Splitting at spaces is meant.
# shellcheck disable=SC2086
exec ${SORA_PROGRAM:-sora-jax} "$@"
