#!/usr/bin/env bash
# From a folder of slides to an encoder, embeddings of a tissue grid, and ODCorr with its picture.
#
#   examples/chain.sh SLIDES OUT [RECIPE] [more options of `pathfm pretrain`]
#   examples/chain.sh /data/slides out/ tiny --set train.steps=200
#
# Run it again after an interruption: every verb goes on where it was stopped.
set -euo pipefail
slides=$1
out=$2
recipe=${3:-tiny}
shift "$(($# < 3 ? $# : 3))"

# Exit 4 says that some slides cannot be used: the others can.
some() { "$@" || [ $? -eq 4 ]; }

mkdir -p "$out"
some pathfm index "$slides" -o "$out/slides.parquet"
some pathfm mask "$out/slides.parquet" -o "$out/tissue.parquet" --preview "$out/outlines"
pathfm pretrain "$out/tissue.parquet" --recipe "$recipe" -o "$out/run" "$@"
pathfm sample "$out/tissue.parquet" --grid --mpp 1 -o "$out/patches.parquet"
some pathfm embed "$out/patches.parquet" --model "$out/run" -o "$out/embeddings.parquet"
pathfm odcorr "$out/embeddings.parquet" -o "$out/odcorr.parquet"
pathfm show "$out/embeddings.parquet" --picture "$out/pca.png" --overwrite
