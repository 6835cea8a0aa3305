# Sourced by the run.sh of the studies: their two scales, and what all of them do.
#
#   run.sh small DATA OUT    minutes on a laptop. DATA: slides/, slides/slides.csv, patches/organ4/
#   run.sh paper DATA OUT    the paper's settings. DATA: tissue.parquet of `pathfm index --metadata`
#                            and `mask`, with a column preservation; bach/ crc/ mhist/ pcam/ of `pathfm
#                            tasks`; tp53/patches.parquet with the columns label and fold, if wanted
#
# Further words go to every `pathfm pretrain`. $STEPS changes the length of the small scale. Run a
# study again after an interruption: every verb goes on where it was stopped.
set -euo pipefail
studies=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
proof=$studies/../learning-proof
names=()

# begin SCALE DATA OUT [MORE...]: sets scale, data, out, tissue, recipe, length, watch, tasks, more.
begin() {
  if [ $# -lt 3 ]; then
    sed -n '3,9p' "${BASH_SOURCE[0]}" >&2
    exit 2
  fi
  scale=$1 data=$2 out=$3
  more=("${@:4}")
  mkdir -p "$out/runs" "$out/embeddings" "$out/scores"
  case $scale in
    small) small ;;
    paper) paper ;;
    *) echo "study: the scale is small or paper, not $scale" >&2; exit 2 ;;
  esac
}

# The learning proof's small ViT on the eight training slides of organ4. Two of its test slides lie
# in the same folder. A look every fifth of the way.
small() {
  local steps=${STEPS:-80} slides=() name split
  recipe=$proof/recipe.toml
  length=(
    --set train.steps="$steps" --set train.steps_per_epoch=$((steps / 5))
    --set train.export_every="$steps" --set train.watch_every=$((steps / 5))
    --set train.checkpoint_every=$((steps / 2)) --set train.precision=fp32
  )
  watch=$data/patches/organ4
  tasks=(organ4)
  tissue=$out/tissue.parquet
  while IFS=, read -r name _ split _; do
    [ "$split" = train ] && slides+=("$data/slides/$name".*)
  done < "$data/slides/slides.csv"
  pathfm index "${slides[@]}" --mpp-override lipoma_colon_HE_nompp=1.0112 \
    -o "$out/slides.parquet" > "$out/log"
  pathfm mask "$out/slides.parquet" -o "$tissue" >> "$out/log"
}

# Paper II-B to II-D: a ViT-S/16, looked at over training on PCam (figures 1 and 2). II-D names FFPE
# slides; II-B and II-C do not say, and take the same here.
paper() {
  export PATHFM_DATA=$data
  recipe=ablation-dino-vits16
  length=(--where "preservation == 'FFPE'")
  watch=pcam
  tissue=$data/tissue.parquet
  tasks=(bach crc mhist pcam)
  [ ! -e "$data/tp53/patches.parquet" ] || tasks+=(tp53)
}

# train NAME [OPTIONS]: the run OUT/runs/NAME, and its scores.
train() {
  local run=$out/runs/$1
  pathfm pretrain "$tissue" --recipe "$recipe" "${length[@]}" --watch "$watch" -o "$run" \
    "${more[@]}" "${@:2}" >> "$out/log"
  judge "$1" "$run"
}

# untrained NAME RUN: the scores of the encoder that a run started from.
untrained() {
  local fresh=$out/runs/$1
  [ -e "$fresh/teacher.safetensors" ] \
    || PYTHONPATH=$proof${PYTHONPATH:+:$PYTHONPATH} python "$studies/fresh.py" "$2" "$fresh"
  judge "$1" "$fresh"
}

# judge NAME MODEL [OPTIONS of embed]: OUT/scores/TASK/NAME/{probe,odcorr} for every task.
judge() {
  local task at embeddings source probing split
  for task in "${tasks[@]}"; do
    at=$out/scores/$task/$1
    embeddings=$out/embeddings/$task-$1.parquet
    probing=(--protocol paper)
    split=(--split test)
    case $task in
      # organ4 has no split that chooses; 112 px are 1.01 um/px, what the encoder was trained on.
      organ4) source=(--images "$watch" --image-size 112); probing=(--method logreg --select last) ;;
      tp53) source=("$data/tp53/patches.parquet" --split fold); probing+=(--folds split); split=() ;;
      *) source=(--task "$task" --data "$data/$task") ;;
    esac
    pathfm embed "${source[@]}" --model "$2" "${@:3}" -o "$embeddings" >> "$out/log"
    mkdir -p "$at"
    pathfm probe "$embeddings" "${probing[@]}" -o "$at/probe" >> "$out/log"
    pathfm odcorr "$embeddings" "${split[@]}" -o "$at/odcorr" >> "$out/log"
  done
  names+=("$1")
}

# finish KIND [OPTIONS of plot.py]: results.json, results.md, plot.png and report.html in OUT.
finish() {
  python "$studies/results.py" "$out" "${names[@]}" -o "$out/results.json"
  python "$studies/plot.py" "$1" "$out/results.json" "$out/plot.png" "${@:2}"
  local name runs=()
  for name in "${names[@]}"; do
    [ ! -e "$out/runs/$name/run.json" ] || runs+=("$out/runs/$name")
  done
  pathfm report "${runs[@]}" "$out"/scores/*/*/{probe,odcorr} -o "$out/report.html" >> "$out/log"
  cat "$out/results.md"
}
