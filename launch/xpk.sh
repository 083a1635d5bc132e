#!/usr/bin/env bash
# One verb on GKE through xpk (pip install xpk), which makes the JobSet itself:
#
#   NAME=dit-xl CLUSTER=… ZONE=… PROJECT=… TPU=v5p-16 IMAGE=… launch/xpk.sh train --config configs/X.py --workdir DIR
#
#   NAME           of the workload
#   CLUSTER        made by `xpk cluster create`
#   ZONE, PROJECT  where it is
#   TPU            of one slice, as xpk names it: v5p-16, v6e-64, or v5p-2x2x2
#   SLICES=1       of them
#   IMAGE          a container with sora-jax in it
#   MAX_RESTARTS=20, GRACE_S=120 (from SIGTERM to SIGKILL)
#   XPK_FLAGS      more flags, split at spaces: "--spot --priority=high"
#   MOUNT=/data    where `xpk storage attach` mounts what all pods share and what outlives them: DIR lies there
#   DRY_RUN=1      prints the command instead
set -euo pipefail

HERE="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/supervise.sh
source "$HERE/supervise.sh"
# shellcheck disable=SC2153
: "${NAME:=}"

require NAME CLUSTER ZONE PROJECT TPU IMAGE
require_count SLICES "${SLICES:=1}" 1
require_count MAX_RESTARTS "${MAX_RESTARTS:=20}" 0
require_count GRACE_S "${GRACE_S:=120}" 0
require_verb "$@"
require_lasting "${MOUNT:=/data}" "$@"

# By itself xpk starts again on 42 and 127 to 255 only. 2, a user's error, is the same error again.
RESTART_ON="1,3,$EXIT_PREEMPTED,$EXIT_HOST_LOST"

read -r -a more <<< "${XPK_FLAGS:-}"
run_or_show xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--zone=$ZONE" "--project=$PROJECT" \
  "--tpu-type=$TPU" "--num-slices=$SLICES" "--docker-image=$IMAGE" "--max-restarts=$MAX_RESTARTS" \
  "--termination-grace-period-seconds=$GRACE_S" "--restart-on-exit-codes=$RESTART_ON" "${more[@]}" "--command=exec $(show sora-jax "$@")"
