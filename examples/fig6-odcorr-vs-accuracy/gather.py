"""Put the rows of several studies' results.json into one, each encoder under its study's name.

python examples/fig6-odcorr-vs-accuracy/gather.py all.json STUDY...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def gather(studies: list[Path]) -> list[dict[str, Any]]:
    """All rows; an encoder that several studies measured with the same numbers counts once."""
    found: list[dict[str, Any]] = []
    seen = set()
    for study in studies:
        for row in json.loads((study / "results.json").read_text())["rows"]:
            numbers = tuple(row[key] for key in ("task", "balanced_accuracy", "odcorr", "rankme"))
            if numbers not in seen:
                seen.add(numbers)
                found.append({**row, "name": f"{study.name}/{row['name']}"})
    return found


if __name__ == "__main__":
    rows = gather([Path(text) for text in sys.argv[2:]])
    Path(sys.argv[1]).write_text(json.dumps({"rows": rows, "curves": {}}, indent=1) + "\n")
