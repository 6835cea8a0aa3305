"""Tables of a report: numbers with intervals, a confusion matrix, facts in two columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pathfm_cli import page

MOST_CLASSES = 40
"""A confusion matrix of more classes is not drawn."""


class Raw(str):
    """Markup made here, which goes into a cell as it is."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table that scrolls sideways on a small screen; columns without any value are left out."""
    rows = list(rows)
    kept = [n for n in range(len(heads)) if any(_known(row[n]) for row in rows)]
    heads, rows = [heads[n] for n in kept], [[row[n] for n in kept] for row in rows]
    top = "".join(f"<th>{page.text(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    said = f"<caption>{page.text(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{top}</tr></thead>{body}</table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, those without a value left out."""
    pairs = [(name, value) for name, value in values.items() if _known(value)]
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{page.text(n)}</dt><dd>{_cell(v)}</dd></div>" for n, v in pairs)
        + "</dl>"
    )


def settings(values: Mapping[str, Any]) -> str:
    """All settings, folded away."""
    rows = list(_flat(values))
    return f"<details><summary>settings</summary>{table(['setting', 'value'], rows)}</details>"


def interval(low: float, value: float, high: float) -> Raw:
    """A bar from 0 to 1 with an interval and the value in it."""
    left, right, middle = (100 * min(max(v, 0.0), 1.0) for v in (low, high, value))
    return Raw(
        f'<span class="bar"><i style="left:{left:.1f}%;width:{max(right - left, 0.5):.1f}%"></i>'
        f'<b style="left:{middle:.1f}%"></b></span>'
    )


def share(value: float) -> Raw:
    """A bar from 0 to 1."""
    width = 100 * min(max(value, 0.0), 1.0)
    return Raw(f'<span class="bar"><i style="left:0;width:{width:.1f}%"></i></span>')


def confusion(classes: Sequence[str], counts: npt.NDArray[np.float64]) -> str:
    """A confusion matrix: rows are the truth; shares of a row as colour and per cent.

    Args:
        classes: C names.
        counts: (C, C) predictions.
    """
    if len(classes) > MOST_CLASSES:
        return f'<p class="note">{len(classes)} classes: too many for a matrix.</p>'
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    head = "".join(f'<th scope="col">{page.text(name)}</th>' for name in classes)
    rows = []
    for name, row, numbers in zip(classes, shares, counts, strict=True):
        cells = "".join(
            f'<td style="--s:{value:.3f}" title="{number:g}">{100 * value:.0f}</td>'
            for value, number in zip(row, numbers, strict=True)
        )
        rows.append(f'<tr><th scope="row">{page.text(name)}</th>{cells}</tr>')
    return (
        '<figure><figcaption>confusion, per cent of each true class</figcaption><div class="wide">'
        f'<table class="matrix"><thead><tr><th>true \\ predicted</th>{head}</tr></thead>'
        f"{''.join(rows)}</table></div></figure>"
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _known(cell: Any) -> bool:
    return cell is not None and cell != ""


def _cell(cell: Any) -> str:
    if isinstance(cell, Raw):
        return str(cell)
    if cell is None:
        return ""
    if isinstance(cell, float):
        return (
            f"{cell:.4g}"
            if abs(cell) >= 1
            else f"{cell:.4f}"
            if abs(cell) >= 1e-3
            else f"{cell:.3g}"
        )
    return page.text(cell)
