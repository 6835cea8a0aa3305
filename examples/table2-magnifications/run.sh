#!/usr/bin/env bash
# Patches of one magnification, or of several (paper, II-C, table II).
#
#   examples/table2-magnifications/run.sh small ../shared/data out/
#   examples/table2-magnifications/run.sh paper /data out/
#
# A run a set of um/px: 0.25, 0.5, 1, 2 are the paper's 40x, 20x, 10x, 5x. small: six of the eight
# slides hold nothing finer than 1, so the sets are one step coarser.
source "$(dirname "$0")/../studies/study.sh"
begin "$@"
if [ "$scale" = small ]; then
  sets=(1 4 1,2,4)
else
  sets=(0.25 0.5 1 2 0.25,0.5 0.5,1,2 0.25,0.5,1,2)
fi
for mpp in "${sets[@]}"; do
  train "mpp-${mpp//,/+}" --set "data.mpp=[$mpp]"
done
finish table
