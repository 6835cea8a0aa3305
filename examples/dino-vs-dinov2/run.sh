#!/usr/bin/env bash
# DINO and DINOv2 on equal terms, as in the paper's Appendix B, at a scale for a laptop: one DINO run,
# three DINOv2 runs with half, the same and double its learning rate (Table VII), three curves; all
# of it SEEDS times.
#
#   examples/dino-vs-dinov2/run.sh DATA OUT [STEPS [SEEDS]]
#   examples/dino-vs-dinov2/run.sh ../shared/data out/ 300 3
#
# DATA holds slides/, patches/organ4/ and patches/dsb2018/. Run it again after an interruption: every
# verb goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1
out=$2
steps=${3:-300}
seeds=${4:-1}
if ((steps < 6 || seeds < 1)); then
  echo "run.sh: STEPS is $steps and SEEDS $seeds; 6 and 1 are the least" >&2
  exit 2
fi
length=(
  --set train.steps="$steps"
  --set train.steps_per_epoch=$((steps / 6))
  --set train.export_every=$((steps / 3))
  --set train.watch_every=$((steps / 3))
)

# The training slides of organ4 alone; two of its test slides lie in the same folder.
slides=()
while IFS=, read -r name _ split _; do
  [ "$split" = train ] && slides+=("$data/slides/$name".*)
done < "$data/slides/slides.csv"

mkdir -p "$out"
pathfm index "${slides[@]}" --mpp-override lipoma_colon_HE_nompp=1.0112 -o "$out/slides.parquet"
pathfm mask "$out/slides.parquet" -o "$out/tissue.parquet"
for ((seed = 0; seed < seeds; seed++)); do
  same=("${length[@]}" --set train.seed="$seed")
  pathfm pretrain "$out/tissue.parquet" --recipe "$here/dino.toml" "${same[@]}" \
    -o "$out/dino-seed-$seed"
  for base_lr in 4e-3 8e-3 16e-3; do
    pathfm pretrain "$out/tissue.parquet" --recipe "$here/dinov2.toml" "${same[@]}" \
      --set optim.base_lr=$base_lr -o "$out/dinov2-lr-$base_lr-seed-$seed"
  done
done
export PYTHONPATH="$here/../learning-proof${PYTHONPATH:+:$PYTHONPATH}"
python "$here/curves.py" "$data" "$out"/dino-seed-* "$out"/dinov2-lr-* -o "$out/curves.json"
python "$here/plot.py" "$out/curves.json" "$out/curves.png"
