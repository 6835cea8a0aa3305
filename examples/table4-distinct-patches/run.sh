#!/usr/bin/env bash
# How many distinct patches (paper, II-D2, table IV and figure 2, right): N of them over and over.
#
#   examples/table4-distinct-patches/run.sh small ../shared/data out/
#   examples/table4-distinct-patches/run.sh paper /data out/
#
# paper: 10^3 to 10^6 patches and all of them new, 1.28e8. small: 32, 256 and all new.
source "$(dirname "$0")/../studies/study.sh"
begin "$@"
if [ "$scale" = small ]; then
  counts=(32 256 0)
else
  counts=(1000 10000 100000 1000000 0)
fi
for count in "${counts[@]}"; do
  name=patches-$count
  [ "$count" -ne 0 ] || name=patches-all-new
  train "$name" --distinct-patches "$count"
done
untrained untrained "$out/runs/patches-all-new"
finish table
