#!/usr/bin/env bash
# A gate for CI: fails when an encoder has collapsed, or lies above the last good one.
#
#   examples/ci/gate.sh CHECKPOINT MAX [BASELINE TOLERANCE] [-- options of pathfm odcorr]
#   examples/ci/gate.sh run/ 0.95
#   examples/ci/gate.sh run/ 0.95 odcorr/main.json 0.02 -- --patches patches.parquet
#
# Exit 0: passed. 5: a gate failed. Anything else: nothing could be measured, which is no pass
# either. The record is printed; the page of a GitHub job gets it too, with a sentence on failure.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,6p' "$0" >&2
  exit 2
fi
checkpoint=$1
gates=(--max "$2")
shift 2
if [ $# -ge 2 ] && [ "$1" != -- ]; then
  gates+=(--baseline "$1" --tolerance "$2")
  shift 2
fi
[ "${1:-}" != -- ] || shift

said=$(mktemp)
trap 'rm -f "$said"' EXIT
code=0
record=$(pathfm odcorr "$checkpoint" "${gates[@]}" "$@" --json 2> "$said") || code=$?
cat "$said" >&2
[ -z "$record" ] || printf '%s\n' "$record"

if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
  {
    echo "### ODCorr of \`$checkpoint\`: exit code $code"
    [ -z "$record" ] || printf '```json\n%s\n```\n' "$record"
    grep '^pathfm: ' "$said" || true
  } >> "$GITHUB_STEP_SUMMARY"
  if [ "$code" -ne 0 ]; then
    echo "::error title=ODCorr::$(grep -m 1 '^pathfm: ' "$said" || echo "exit code $code")" >&2
  fi
fi
exit "$code"
