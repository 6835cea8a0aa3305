#!/usr/bin/env bash
# Balanced accuracy, ODCorr and RankMe of all encoders of other studies (paper, C2, figure 6).
#
#   examples/fig6-odcorr-vs-accuracy/run.sh OUT STUDY...
#   examples/fig6-odcorr-vs-accuracy/run.sh all/ fig1/ table2/ table3/ table4/
#
# A STUDY is the OUT of another study. Nothing is measured again, so it takes seconds at any scale.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 2 ]; then
  sed -n '4,7p' "$0" >&2
  exit 2
fi
out=$1
shift
mkdir -p "$out"
python "$here/gather.py" "$out/results.json" "$@"
python "$here/../studies/plot.py" scatter "$out/results.json" "$out/plot.png"
pathfm report $(for study; do printf '%s\n' "$study"/scores/*/*/{probe,odcorr}; done) \
  -o "$out/report.html" > "$out/log"
