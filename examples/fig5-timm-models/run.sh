#!/usr/bin/env bash
# Encoders of timm on natural images (paper, C1, figure 5): top-1 accuracy over ODCorr.
#
#   examples/fig5-timm-models/run.sh IMAGES OUT [MODEL...]
#   examples/fig5-timm-models/run.sh digits out/ $(cat examples/fig5-timm-models/models-small.txt)
#   examples/fig5-timm-models/run.sh cifar10/ out/
#
# IMAGES is a folder as torchvision's ImageFolder takes it: train/CLASS/* and test/CLASS/*. `digits`
# makes one of the first 600 ($DIGITS) of scikit-learn's 1,797 handwritten digits. A MODEL is what
# `pathfm embed --model` takes; without one those of models-paper.txt, whose weights timm fetches.
# $SIZE is the side of the input.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 2 ]; then
  sed -n '4,11p' "$0" >&2
  exit 2
fi
images=$1
out=$2
shift 2
[ $# -gt 0 ] || mapfile -t models < <(grep -v '^#' "$here/models-paper.txt")
[ $# -eq 0 ] || models=("$@")
mkdir -p "$out/embeddings"
if [ "$images" = digits ]; then
  images=$out/digits
  [ -d "$images" ] || python "$here/digits.py" "$images" "${DIGITS:-600}"
fi
task=$(basename "$images")
names=()
for model in "${models[@]}"; do
  name=${model//[^A-Za-z0-9._-]/_}
  embeddings=$out/embeddings/$name.parquet
  pathfm embed --images "$images" --model "$model" ${SIZE:+--image-size "$SIZE"} -o "$embeddings" \
    >> "$out/log"
  mkdir -p "$out/scores/$task/$name"
  pathfm probe "$embeddings" --method logreg --select last -o "$out/scores/$task/$name/probe" \
    >> "$out/log"
  pathfm odcorr "$embeddings" --split test -o "$out/scores/$task/$name/odcorr" >> "$out/log"
  names+=("$name")
done
python "$here/../studies/results.py" "$out" "${names[@]}" -o "$out/results.json"
python "$here/../studies/plot.py" scatter "$out/results.json" "$out/plot.png" --score accuracy
cat "$out/results.md"
