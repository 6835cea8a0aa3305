#!/usr/bin/env bash
# Does `pathfm pretrain` learn? A small ViT from scratch, read online from eight slides; scores before
# and after. Some minutes of preparation, then what recipe.toml says a seed takes.
#
#   examples/learning-proof/run.sh DATA OUT [SEED...]
#   examples/learning-proof/run.sh ../shared/data out/ 0 1 2
#
# DATA holds slides/, patches/organ4/ and patches/dsb2018/. Run it again after an interruption: every
# verb goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1
out=$2
shift 2
seeds=("${@:-0}")

# The training slides of organ4 alone; two of its test slides lie in the same folder.
slides=()
while IFS=, read -r name _ split _; do
  [ "$split" = train ] && slides+=("$data/slides/$name".*)
done < "$data/slides/slides.csv"

mkdir -p "$out"
pathfm index "${slides[@]}" --mpp-override lipoma_colon_HE_nompp=1.0112 -o "$out/slides.parquet"
pathfm mask "$out/slides.parquet" -o "$out/tissue.parquet" --preview "$out/outlines"
runs=()
for seed in "${seeds[@]}"; do
  run=$out/seed-$seed
  pathfm pretrain "$out/tissue.parquet" --recipe "$here/recipe.toml" --set train.seed="$seed" -o "$run"
  pathfm odcorr "$run" -o "$out/odcorr-$seed.parquet"
  runs+=("$run")
done
python "$here/evaluate.py" "$data" "${runs[@]}" -o "$out/results.json"
python "$here/plot.py" "$out/results.json" "$out/curves.png"
cat "$out/results.md"
