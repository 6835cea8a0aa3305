"""ODCorr and RankMe of embeddings: label-free, exact, in one streaming pass (paper IV-D1, eq. 1).

N = samples, K = width. u_i is row i, centred and scaled to length 1, so that rho_ij = u_i . u_j.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, scores

F64 = npt.NDArray[np.float64]
Report = Callable[[int, int], None]
RANKME_EPSILON = 1e-7
"""Added to every normalised singular value (RankMe, Garrido et al. 2023, eq. 1)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Diversity:
    """What was measured; the fields are the keys of the record's `metrics`."""

    odcorr: float
    """sqrt(sum_{i != j} rho_ij^2 / (N (N - 1))), 0 to 1."""
    rankme: float
    """exp of the entropy of the singular values of the uncentred matrix, up to min(N, K)."""
    floor: float
    """1 / sqrt(K - 1): ODCorr of directions without any structure at this width."""
    n: int
    """Samples used."""
    k: int
    """Width of the embeddings."""
    constant_rows: int
    """Rows left out because all their numbers are the same: they have no correlation."""
    gram_side: int
    """Side of the matrix that was summed: K (the identity) or N (the definition, when N <= K)."""


def measure(
    blocks: Iterable[npt.NDArray[Any]], rows: int, width: int, progress: Report | None = None
) -> Diversity:
    """Measure embeddings that arrive in blocks; memory is O(K^2), or O(N K) when N <= K.

    With U the rows u_i, ||U U^T||_F = ||U^T U||_F, so the N x N definition is computed from a
    K x K matrix: ODCorr^2 = (||U^T U||_F^2 - sum_i |u_i|^4) / (N (N - 1)). All sums are float64.

    Args:
        blocks: (n, K) float arrays, finite, together `rows` rows.
        rows: how many rows come; chooses the matrix.
        width: K.
        progress: called with (rows done, rows).

    Raises:
        errors.InputError: fewer than two rows that are not constant, or numbers too large.
    """
    small = rows <= width
    sums = _Rows(width) if small else _Grams(width)
    done = constant = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            values = block.astype(np.float64)
            units, varies = _unit_rows(values)
            sums.add(values if varies.all() else values[varies], units)
            constant += int((~varies).sum())
            done += len(block)
            if progress:
                progress(done, rows)
        used = done - constant
        if used < 2:
            raise errors.InputError(
                f"ODCorr needs two rows that are not constant; {done} rows hold {used}.",
                "embed more images, or look at the encoder: it may have collapsed",
            )
        off_diagonal, rankme = sums.finish()
    odcorr = math.sqrt(max(off_diagonal, 0.0) / (used * (used - 1)))
    floor = 1 / math.sqrt(width - 1)
    return Diversity(odcorr, rankme, floor, used, width, constant, used if small else width)


def odcorr(
    source: features.Features,
    out: Path | None,
    *,
    split: str | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> scores.Result:
    """Measure a file of embeddings and, with `out`, write the `scores` artifact.

    Args:
        source: the embeddings.
        out: see `scores.place`; None writes nothing.
        split: only rows of this split (the paper measures on the test split).
        overwrite: replace what `out` holds.
        progress: called with (rows done, rows).

    Raises:
        errors.InputError: as `measure`, or the split is asked for and the file has none.
        errors.UsageError: no such split.
        errors.OutputClash: `out` holds something else.
    """
    rows = source.rows(split)
    header = artifacts.Header(kind="scores", parents=(source.parent,), settings=settings(split))
    if out and (old := artifacts.finished(scores.place(out).table, header, overwrite=overwrite)):
        told = (*scores.notes(out), "up to date")
        return scores.Result(old, told, _lines(old["metrics"]))
    start = time.perf_counter()
    found = measure(source.chunks(rows), len(rows), source.width, progress)
    numbers = dataclasses.asdict(found) | {"excluded_rows": source.failed}
    table = scores.table((name, split or "", None, value) for name, value in numbers.items())
    timed = numbers | {"seconds": time.perf_counter() - start}
    header = dataclasses.replace(header, metrics=timed)
    notes = _notes(source, found)
    document = {"notes": list(notes)}
    record = scores.write(out, table, header, document) if out else scores.unsaved(header)
    return scores.Result(record, notes, _lines(numbers))


def settings(split: str | None) -> dict[str, Any]:
    """What the `scores` artifact records of how it was made."""
    return {"task": "odcorr", "split": split or ""}


def plan(source: features.Features, out: Path | None, split: str | None) -> dict[str, Any]:
    """What `odcorr` would do.

    Raises:
        errors.InputError, errors.UsageError: the split is not there.
    """
    rows = len(source.rows(split))
    return {
        "input": str(source.path),
        "rows": rows,
        "excluded_rows": source.failed,
        "width": source.width,
        "gram_side": min(rows, source.width),
        "writes": [str(path) for path in scores.written(out)],
    }


def gate(value: float, minimum: float | None, maximum: float | None) -> None:
    """Compare ODCorr with the limits a script set.

    Raises:
        errors.GateFailed: it lies outside, or is not a number.
    """
    hint = "docs/odcorr.md tells what high and low values mean"
    if maximum is not None and not value <= maximum:
        raise errors.GateFailed(f"ODCorr {value:.4f} is above --max {maximum:g}.", hint)
    if minimum is not None and not value >= minimum:
        raise errors.GateFailed(f"ODCorr {value:.4f} is below --min {minimum:g}.", hint)


def check_limits(minimum: float | None, maximum: float | None) -> None:
    """Refuse limits that ODCorr cannot meet or miss.

    Raises:
        errors.UsageError: outside 0 to 1, or the lower above the upper.
    """
    for name, limit in (("--min", minimum), ("--max", maximum)):
        if limit is not None and not 0 <= limit <= 1:
            raise errors.UsageError(f"{name} {limit:g} is not between 0 and 1.", "--max 0.5")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise errors.UsageError(f"--min {minimum:g} is above --max {maximum:g}.", "--max 0.5")


def _notes(source: features.Features, found: Diversity) -> list[str]:
    notes = []
    if source.failed:
        notes.append(f"{source.failed} rows without an embedding are left out")
    if found.constant_rows:
        notes.append(f"{found.constant_rows} constant rows are left out; the encoder may be broken")
    return notes


def _lines(numbers: Mapping[str, float]) -> list[str]:
    return [
        f"ODCorr {numbers['odcorr']:.4f}   floor {numbers['floor']:.4f} (K = {numbers['k']})",
        f"RankMe {numbers['rankme']:.1f} of {min(numbers['n'], numbers['k'])}",
        f"rows   {numbers['n']}",
    ]


class _Grams:
    """Sums for N > K: U^T U and Z^T Z."""

    def __init__(self, width: int) -> None:
        self.unit_KK = np.zeros((width, width))
        self.raw_KK = np.zeros((width, width))
        self.diagonal = 0.0

    def add(self, values: F64, units: F64) -> None:
        # numpy computes A.T @ A by the symmetric routine, at half the work.
        self.unit_KK += units.T @ units
        self.raw_KK += values.T @ values
        self.diagonal += _fourth_powers(units)

    def finish(self) -> tuple[float, float]:
        if not np.isfinite(self.raw_KK).all():
            raise errors.InputError(
                "The embeddings are too large to square in float64.", "divide them by a constant"
            )
        eigenvalues = np.linalg.eigvalsh(self.raw_KK)
        return _square_sum(self.unit_KK) - self.diagonal, _rankme(_roots(eigenvalues))


class _Rows:
    """All rows, for N <= K: the definition itself."""

    def __init__(self, width: int) -> None:
        self.values: list[F64] = []
        self.units: list[F64] = []

    def add(self, values: F64, units: F64) -> None:
        self.values.append(values)
        self.units.append(units)

    def finish(self) -> tuple[float, float]:
        units = np.concatenate(self.units)
        correlations = units @ units.T
        np.fill_diagonal(correlations, 0.0)
        singular = np.linalg.svd(np.concatenate(self.values), compute_uv=False)
        return _square_sum(correlations), _rankme(singular)


def _unit_rows(values: F64) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Centre every row and scale it to length 1; drop rows that are constant up to round-off."""
    units = values - values.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("nk,nk->n", units, units))
    norms = np.sqrt(np.einsum("nk,nk->n", values, values))
    varies = lengths > math.sqrt(values.shape[1]) * np.finfo(np.float64).eps * norms
    if not varies.all():
        units, lengths = units[varies], lengths[varies]
    units /= lengths[:, None]
    return units, varies


def _fourth_powers(units: F64) -> float:
    """Sum of |u_i|^4: N up to round-off, and the round-off that the Gram matrix holds too."""
    return float((np.einsum("nk,nk->n", units, units) ** 2).sum())


def _square_sum(matrix: F64) -> float:
    flat = matrix.ravel()
    return float(flat @ flat)


def _roots(eigenvalues: npt.NDArray[np.floating[Any]]) -> F64:
    """Singular values from eigenvalues of Z^T Z; what is below round-off is 0."""
    noise = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max()
    return np.sqrt(np.where(eigenvalues > noise, eigenvalues, 0.0))


def _rankme(singular: F64) -> float:
    shares = singular / singular.sum() + RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))
