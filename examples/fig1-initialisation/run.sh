#!/usr/bin/env bash
# First weights from elsewhere, or random ones (paper, II-B, figure 1).
#
#   examples/fig1-initialisation/run.sh small ../shared/data out/
#   examples/fig1-initialisation/run.sh paper /data out/
#
# paper: 120 epochs of a ViT-S/16 with DINO's weights of ImageNet, against random ones. small: no
# weights of natural images are at hand, so "elsewhere" is a short run on two other slides (skin and
# a frozen section), and the two runs that are compared see the eight slides of organ4.
source "$(dirname "$0")/../studies/study.sh"
begin "$@"
if [ "$scale" = small ]; then
  others=("$data/slides/CMU-1-Small-Region.svs" "$data/slides/TCGA-CR-7395-01A-01-TS1.svs")
  pathfm index "${others[@]}" --mpp-override TCGA-CR-7395-01A-01-TS1=0.25 \
    -o "$out/elsewhere.parquet" >> "$out/log"
  pathfm mask "$out/elsewhere.parquet" -o "$out/elsewhere-tissue.parquet" >> "$out/log"
  first=$out/runs/elsewhere
  pathfm pretrain "$out/elsewhere-tissue.parquet" --recipe "$recipe" "${length[@]}" \
    --set train.watch_every=0 -o "$first" >> "$out/log"
  longer=()
else
  first=dino-s16
  longer=(--set length.epochs=120) # paper II-B
fi
train scratch "${longer[@]}"
train from-elsewhere --init "$first" "${longer[@]}"
untrained untrained "$out/runs/scratch"
finish curves
