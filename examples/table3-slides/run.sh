#!/usr/bin/env bash
# How many slides (paper, II-D1, table III and figure 2, left): nested shares of them.
#
#   examples/table3-slides/run.sh small ../shared/data out/
#   examples/table3-slides/run.sh paper /data out/
#
# paper: 1, 10, 30, 100 % of TCGA's FFPE slides. small: 1, 2, 4 and 8 of eight slides.
source "$(dirname "$0")/../studies/study.sh"
begin "$@"
if [ "$scale" = small ]; then
  shares=(0.125 0.25 0.5 1)
else
  shares=(0.01 0.1 0.3 1)
fi
for share in "${shares[@]}"; do
  train "slides-$share" --subset "$share"
done
untrained untrained "$out/runs/slides-1"
finish table
