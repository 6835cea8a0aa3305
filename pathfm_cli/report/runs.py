"""A training run on the page: how it stands, its curves, its looks at the teacher, its pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from pathfm_cli import disk, page
from pathfm_cli.pretrain import folder
from pathfm_cli.report import charts, inputs, tables

MAX_PICTURE_BYTES = 8 << 20
"""A larger file is no picture that a run kept of itself."""
MAX_SKIPPED_BYTES = 64 << 20
"""Of a larger list of skipped patches only so much is counted."""

CURVES = (
    # Title, columns as (name on the chart, column).
    ("loss = teacher entropy + KL", (("loss", "loss"), ("teacher entropy", "teacher_entropy"))),
    ("KL of student from teacher", (("KL", "kl"),)),
    ("learning rate", (("lr", "lr"),)),
    ("gradient norm", (("before clipping", "grad_norm"),)),
    ("images per second", (("images/s", "images_per_s"),)),
    ("stall: share of time waiting for patches", (("stall", "stall"),)),
)
PICTURES = (
    (folder.CROPS, "Crops as the model sees them: a row a patch, global views first"),
    (folder.NEIGHBOURS, "Nearest neighbours: the first of a row, then those most like it"),
)


def section(run: inputs.Run) -> str:
    """Everything about one run."""
    parts = [tables.facts(_facts(run)), *_notes(run)]
    drawn = [curves(title, run, columns) for title, columns in CURVES]
    drawn += looks(run)
    if any(drawn):
        parts.append(f'<div class="charts">{"".join(drawn)}</div>')
    parts += [_picture(run.path / name, title) for name, title in PICTURES]
    return "".join([*parts, tables.settings(run.header.settings)])


def curves(title: str, run: inputs.Run, columns: Sequence[tuple[str, str]]) -> str:
    """Columns of the log over the step."""
    levels = []
    prototypes = _number(_setting(run, "head", "prototypes"))
    if any(column == "loss" for _, column in columns) and prototypes and prototypes > 0:
        levels = [("ln K: a teacher without opinion", math.log(prototypes))]
    series = [column(run.lines, key, name, number) for number, (name, key) in enumerate(columns)]
    return charts.lines(title, series, levels=levels)


def looks(run: inputs.Run) -> list[str]:
    """Charts of the looks at the teacher."""
    levels = {name: last(run.looks, name) for name in ("floor", "chance")}
    floor, chance = ([] if v is None else [(n, v)] for n, v in levels.items())
    judged = [column(run.looks, n, t, i) for i, (n, t) in enumerate(JUDGED.items())]
    return [
        charts.lines("ODCorr of the fixed patches", [column(run.looks, "odcorr")], levels=floor),
        charts.lines("RankMe of the fixed patches", [column(run.looks, "rankme")]),
        charts.lines("balanced accuracy on labelled images", judged, levels=chance),
    ]


JUDGED = {"linear": "linear probe", "knn": "20-NN"}
"""Columns of a look with labels, and their names."""


def column(
    rows: Sequence[Mapping[str, Any]], key: str, name: str = "", colour: int | None = None
) -> charts.Series:
    """One column over the step; rows without a number in it are left out."""
    found = [(row["step"], value) for row in rows if (value := _number(row.get(key))) is not None]
    return charts.Series(
        name or key, [at for at, _ in found], [value for _, value in found], colour=colour
    )


def last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The last finite number of a column."""
    return next((v for row in reversed(rows) if (v := _number(row.get(key))) is not None), None)


def _facts(run: inputs.Run) -> dict[str, Any]:
    steps = _setting(run, "train", "steps")
    done = run.lines[-1]["step"] if run.lines else 0
    speed, stall = (
        statistics.median(values) if (values := column(run.lines, name).y) else None
        for name in ("images_per_s", "stall")
    )
    return {
        "state": "finished" if run.finished else f"not finished: step {done} of {steps}",
        "recipe": run.header.settings.get("name"),
        "encoder": _setting(run, "model", "arch"),
        "steps": steps,
        "patches a step": _setting(run, "train", "batch_size"),
        "seed": _setting(run, "train", "seed"),
        "loss": last(run.lines, "loss"),
        "ODCorr": last(run.looks, "odcorr"),
        "RankMe": last(run.looks, "rankme"),
        "linear probe": last(run.looks, "linear"),
        "20-NN": last(run.looks, "knn"),
        "images/s, median": speed,
        "stall, median": None if stall is None else f"{stall:.1%}",
        "steps skipped": int(last(run.lines, "skipped_steps") or 0) or None,
        "patches replaced": _skipped(run.path / folder.SKIPPED) or None,
        "id": run.header.id,
    }


def _notes(run: inputs.Run) -> list[str]:
    notes = []
    if not run.lines:
        notes.append("No step has been logged yet.")
    collapsed = [line["step"] for line in run.lines if line.get("collapse") == 1]
    if collapsed:
        notes.append(
            f"The run had collapsed by step {collapsed[0]}: targets the same for all images."
        )
    if not run.looks:
        notes.append(
            "Nobody looked at the teacher on the way: --set train.watch_every=1000, and --watch "
            "LABELLED for k-NN and linear curves, make a run keep such curves and pictures."
        )
    if run.damaged:
        notes.append(f"{run.damaged} lines of the metrics are damaged and left out.")
    return [f'<p class="note">{page.text(note)}</p>' for note in notes]


def _picture(file: Path, title: str) -> str:
    """A JPEG that the run kept, if it is one."""
    try:
        if disk.is_special(file) or file.stat().st_size > MAX_PICTURE_BYTES:
            return ""
        with Image.open(file, formats=["JPEG"]) as opened:
            width, height = opened.size
        drawn = page.image(file.read_bytes(), width, height, title)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return f'<figure class="picture"><figcaption>{page.text(title)}</figcaption>{drawn}</figure>'


def _skipped(listing: Path) -> int:
    """Patches that were replaced, of all ranks."""
    count = 0
    for file in sorted(listing.glob("rank-*.jsonl")):
        if disk.is_special(file):
            continue
        with file.open("rb") as opened:
            count += opened.read(MAX_SKIPPED_BYTES).count(b"\n")
    return count


def _setting(run: inputs.Run, *path: str) -> Any:
    value: Any = run.header.settings
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
