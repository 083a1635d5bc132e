#!/usr/bin/env bash
# The whole path on this machine, one verb after another: a world is rendered, an autoencoder and a diffusion
# transformer are trained, samples are drawn, measured and shown on a page. `make quickstart` and `make demo` both
# run this script; the variables below are all that differs.
#
# A finished step leaves a stamp that names its command, its config and the step before it; it counts while the step's
# output is there. Interrupted and run again, the script goes on where it stopped. A changed config runs its step and
# all after it again: a run is continued if only its length or its logging changed, and otherwise the step refuses the
# old output and says which to remove. DRY_RUN=1 prints the commands instead.
set -euo pipefail

OUT="${OUT:-runs/quickstart}"
WORLD="${WORLD:-quickstart}"
CLIPS="${CLIPS:-6000}"
SEED="${SEED:-0}"
AE_CONFIG="${AE_CONFIG:-configs/autoencoder_quickstart.py}"
DIT_CONFIG="${DIT_CONFIG:-configs/dit_quickstart.py}"
PROMPTS="${PROMPTS:-launch/prompts_quickstart.txt}"
SAMPLE_ARGS="${SAMPLE_ARGS:---steps 20 --guidance 3}"
TITLE="${TITLE:-Text to video in a quarter of an hour, from nothing}"

HERE="$(dirname "$0")"
COMMANDS="$OUT/commands.txt"
key="start"
total_s=0

if [ -z "${DRY_RUN:-}" ]; then
  mkdir -p "$OUT/.done"
  : > "$COMMANDS"
fi

# step NAME COMMAND…: shows the command and runs it, unless it is done.
step() {
  local name="$1" stamp inputs=() word line output="" before=""
  shift
  if [ -n "${DRY_RUN:-}" ]; then
    bash "$HERE/local.sh" "$@"
    return
  fi
  for word in "$@"; do
    case "$word" in "$AE_CONFIG" | "$DIT_CONFIG" | "$PROMPTS") inputs+=("$word") ;; esac
    case "$before" in --out | --workdir) output="$word" ;; esac
    before="$word"
  done
  key="$(printf '%s\n' "$key" "$@" | cat - ${inputs[@]+"${inputs[@]}"} | cksum | tr " " -)"
  stamp="$OUT/.done/$name"
  line="sora-jax$(printf ' %q' "$@")"
  printf '\n\033[1m── %s\033[0m\n   %s\n' "$name" "$line"
  if [ -e "$output" ] && [ "$(cut -d ' ' -f 1 "$stamp" 2>/dev/null)" = "$key" ]; then
    printf '   done before, in %s s\n' "$(cut -d ' ' -f 2 "$stamp")"
  else
    running="$stamp.part" started=$SECONDS
    bash "$HERE/local.sh" "$@"
    spent "$running"
    printf '%s %s\n' "$key" "$(cat "$running")" > "$stamp"
    rm "$running"
    running=""
  fi
  total_s=$((total_s + $(cut -d ' ' -f 2 "$stamp")))
  printf '# %s: %s s\n%s\n' "$name" "$(cut -d ' ' -f 2 "$stamp")" "$line" >> "$COMMANDS"
}

# spent FILE: adds the seconds since the step began to those in FILE, so that an interrupted step counts in full.
spent() {
  printf '%s\n' "$(($(cat "$1" 2>/dev/null || echo 0) + SECONDS - started))" > "$1"
}

running=""
trap '[ -z "$running" ] || spent "$running"' EXIT

step "1 render the world" data synth --world "$WORLD" --clips "$CLIPS" --seed "$SEED" --out "$OUT/videos"
step "2 videos to shards" data build --videos "$OUT/videos" --captions "$OUT/videos/captions.jsonl" --out "$OUT/clips"
step "3 train the autoencoder" train --config "$AE_CONFIG" --workdir "$OUT/autoencoder" "--config.data.path=$OUT/clips"
step "4 clips to latents" encode --autoencoder "$OUT/autoencoder" --data "$OUT/clips" --out "$OUT/latents"
step "5 train the diffusion transformer" train --config "$DIT_CONFIG" --workdir "$OUT/dit" "--config.data.path=$OUT/latents"
# SAMPLE_ARGS is a list of flags: splitting it at spaces is meant.
# shellcheck disable=SC2086
step "6 sample" sample --run "$OUT/dit" --prompts "$PROMPTS" $SAMPLE_ARGS --overwrite --out "$OUT/samples"
step "7 measure" evaluate --metric probes --generated "$OUT/samples" --real "$OUT/clips" \
  --autoencoder "$OUT/autoencoder" --out "$OUT/evaluation.json"
step "8 distances" evaluate --metric synth-fd,synth-fvd,dimensions --generated "$OUT/samples" --real "$OUT/clips" \
  --cache "$OUT/features" --out "$OUT/distances.json"
step "9 report" report --run "$OUT/dit" --autoencoder "$OUT/autoencoder" --samples "$OUT/samples" \
  --evaluation "$OUT/evaluation.json" --scores "$OUT/distances.json" --title "$TITLE" --commands "$COMMANDS" --out "$OUT/index.html"

[ -n "${DRY_RUN:-}" ] || printf '\nAll steps: %d min %d s. The page: %s\n' $((total_s / 60)) $((total_s % 60)) "$OUT/index.html"
