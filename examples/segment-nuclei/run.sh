#!/usr/bin/env bash
# Do smaller patches segment nuclei better? Frozen encoders under two decoders, three runs each, on
# 36 training and 19 test images of 320 x 256 px. README.md says how long it takes.
#
#   examples/segment-nuclei/run.sh DATA OUT [RUN]
#   examples/segment-nuclei/run.sh ../shared/data out/ learning-proof/seed-0
#
# DATA holds patches/dsb2018/; RUN is the folder of a training run, such as examples/learning-proof
# leaves. Finished parts are not made again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1
out=$2
run=${3:-}

mkdir -p "$out"
models=(random/vit_small_patch16_224 random/vit_small_patch8_224)
names=(random-s16 random-s8)
if [ -n "$run" ]; then
  models+=("$run")
  names+=(trained)
fi
for number in "${!models[@]}"; do
  common=(--images "$data/patches/dsb2018/index.csv" --instances --model "${models[number]}"
    --size 112 --stride 97 --crops 96 --runs 3 --keep-converged)
  pathfm segment "${common[@]}" --decoder linear --epochs 60 --lr 3e-3 \
    -o "$out/${names[number]}-linear"
  pathfm segment "${common[@]}" --decoder mask2former --epochs 6 --batch-size 4 \
    -o "$out/${names[number]}-mask2former"
done
python "$here/table.py" "$data" "$out"
