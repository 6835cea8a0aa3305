r"""Score runs over their steps: ODCorr, a linear probe of organs, a linear probe of nuclei.

PYTHONPATH=examples/learning-proof \
  python examples/dino-vs-dinov2/curves.py DATA RUN... -o curves.json

ODCorr is that of the run's own fixed training patches, from its `watch.jsonl`. The probes are those
of examples/learning-proof: balanced accuracy on patches of other slides, and average precision of
"more than half nucleus" for cells of 8 px on other images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import evaluate
import organ4

from pathfm_cli.model import export
from pathfm_cli.pretrain import folder, metrics

Points = list[dict[str, float]]


def probes(run: Path, data: organ4.Organ4, dsb2018: Path) -> Points:
    """Scores before the first step and of every export."""
    exports = sorted((run / folder.EXPORTS).glob("step-*"))
    with tempfile.TemporaryDirectory() as temporary:
        fresh = evaluate.untrained(run, Path(temporary) / "fresh")
        found = [evaluate.encoder_scores(path, data, dsb2018) for path in (fresh, *exports)]
    steps = [0, *(export.read_info(path).step for path in exports)]
    return [
        {"step": step, "organs": scores["linear"], "nuclei": scores["nuclei_ap"]}
        for step, scores in zip(steps, found, strict=True)
    ]


def curves(run: Path, data: organ4.Organ4, dsb2018: Path) -> dict[str, object]:
    """All three curves of a run, and its seconds a step (the median, waiting for patches aside)."""
    looks = metrics.lines(run / folder.WATCH)
    lines = metrics.lines(run / folder.METRICS)
    batch = json.loads((run / folder.IDENTITY).read_text())["settings"]["train"]["batch_size"]
    seconds = sorted(batch * (1 - line["stall"]) / line["images_per_s"] for line in lines)
    return {
        "odcorr": [{"step": look["step"], "odcorr": look["odcorr"]} for look in looks],
        "rankme": [{"step": look["step"], "rankme": look["rankme"]} for look in looks],
        "probes": probes(run, data, dsb2018),
        "step_s": seconds[len(seconds) // 2],
    }


def main() -> None:
    """Parse, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with patches/organ4 and patches/dsb2018")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    patches = arguments.data / "patches"
    data = organ4.read(patches / "organ4")
    found = {run.name: curves(run, data, patches / "dsb2018") for run in arguments.runs}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
    arguments.out.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
