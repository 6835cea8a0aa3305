"""ODCorr, RankMe and alpha-ReQ of embeddings: no labels, one streaming pass (paper IV-D1, eq. 1).

N = samples, K = width. u_i is row i, centred and scaled to length 1, so that rho_ij = u_i . u_j.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, grams, scores, spectrum

F64 = npt.NDArray[np.float64]
Report = Callable[[int, int], None]
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Devices by which a driver for CUDA shows; without one torch is not even imported."""


class TooFewRows(errors.InputError):
    """Fewer than two embeddings have a correlation.

    Args:
        rows: embeddings.
        constant_rows: those of them whose numbers are all the same.
    """

    def __init__(self, rows: int, constant_rows: int) -> None:
        super().__init__(
            f"ODCorr needs two rows that are not constant; there are {rows - constant_rows}, and "
            f"{constant_rows} constant.",
            "embed more images, or look at the encoder: it may have collapsed",
        )
        self.rows, self.constant_rows = rows, constant_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Diversity:
    """What was measured."""

    odcorr: float
    """sqrt(sum_{i != j} rho_ij^2 / (N (N - 1))), 0 to 1."""
    rankme: float
    """exp of the entropy of the singular values of the uncentred matrix, up to min(N, K)."""
    alpha: spectrum.Alpha | None
    """alpha-ReQ, see `spectrum.alpha`; None where the spectrum is too short."""
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
    gpu: bool
    """Whether a GPU summed it."""
    variances_R: F64
    """The spectrum: variance along each principal direction, falling; min(N, K) numbers."""

    def numbers(self) -> dict[str, float]:
        """The flat metrics; what cannot be told is absent."""
        shares = {f"top{n}": spectrum.top_share(self.variances_R, n) for n in (1, 10)}
        fit = dataclasses.asdict(self.alpha) if self.alpha else {}
        names = {"exponent": "alpha", "first": "alpha_first", "last": "alpha_last"}
        return {
            "odcorr": self.odcorr,
            "rankme": self.rankme,
            **{names[name]: value for name, value in fit.items()},
            **{name: share for name, share in shares.items() if share is not None},
            "floor": self.floor,
            "n": self.n,
            "k": self.k,
            "constant_rows": self.constant_rows,
            "gram_side": self.gram_side,
            "gpu": int(self.gpu),
        }


def measure(
    blocks: Iterable[npt.NDArray[Any]],
    rows: int,
    width: int,
    progress: Report | None = None,
    device: str = "cpu",
) -> Diversity:
    """Measure embeddings that arrive in blocks; memory is O(K^2), or O(N K) when N <= K.

    With U the rows u_i, ||U U^T||_F = ||U^T U||_F, so the N x N definition is computed from a
    K x K matrix: ODCorr^2 = (||U^T U||_F^2 - N) / (N (N - 1)). All sums are float64.

    Args:
        blocks: (n, K) float arrays, finite, together `rows` rows.
        rows: how many rows come; chooses the matrix.
        width: K.
        progress: called with (rows done, rows).
        device: where the K x K matrix is summed: cpu, cuda, cuda:N, or auto for CUDA where there
            is some. MPS has no float64, so it means the CPU, as does every device when N <= K.

    Raises:
        TooFewRows: fewer than two rows are not constant.
        errors.InputError: numbers too large or too small to square.
        errors.UsageError: this machine has no such device.
    """
    sums, gpu = _sums_for(rows, width, device)
    done = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            sums.add(block)
            done += len(block)
            if progress:
                progress(done, rows)
        found = sums.finish()
    used = found.used
    if used < 2:
        raise TooFewRows(done, done - used)
    return Diversity(
        # Round-off may leave the range by some 1e-16, which no limit of 1 should notice.
        odcorr=min(1.0, math.sqrt(max(found.off_diagonal, 0.0) / (used * (used - 1)))),
        rankme=spectrum.rankme(found.singular_R),
        alpha=spectrum.alpha(found.variances_R),
        floor=1 / math.sqrt(width - 1),
        n=used,
        k=width,
        constant_rows=done - used,
        gram_side=used if rows <= width else width,
        gpu=gpu,
        variances_R=found.variances_R,
    )


def odcorr(
    source: features.Features,
    out: Path | None,
    *,
    split: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Report | None = None,
) -> scores.Result:
    """Measure a file of embeddings and, with `out`, write the `scores` artifact.

    Args:
        source: the embeddings.
        out: see `scores.place`; None writes nothing.
        split: only rows of this split (the paper measures on the test split).
        device: as for `measure`.
        overwrite: replace what `out` holds.
        progress: called with (rows done, rows).

    Raises:
        errors.InputError: as `measure`, or the split is asked for and the file has none.
        errors.UsageError: no such split, or as `measure`.
        errors.OutputClash: `out` holds something else.
    """
    rows = source.rows(split)
    said = {**settings(split), **scored(source)}
    header = artifacts.Header(kind="scores", parents=(source.parent,), settings=said)
    if out and (old := artifacts.finished(scores.place(out).table, header, overwrite=overwrite)):
        told = (*scores.notes(out), "up to date")
        return scores.Result(old, told, lines(old["metrics"]))
    numbers, found = timed(source, rows, device, progress)
    table = scores.table(
        (name, split or "", None, value) for name, value in numbers.items() if name != "seconds"
    )
    header = dataclasses.replace(header, metrics=numbers)
    said_of_rows = notes(numbers)
    document = {"notes": said_of_rows, "spectrum": found.variances_R.tolist()}
    record = scores.write(out, table, header, document) if out else scores.unsaved(header)
    return scores.Result(record, said_of_rows, lines(numbers))


def timed(
    source: features.Features, rows: features.Rows, device: str, progress: Report | None
) -> tuple[dict[str, float], Diversity]:
    """Measure rows of a file: the flat metrics, with `excluded_rows` and `seconds`.

    Raises:
        errors.InputError, errors.UsageError: as `measure`.
    """
    start = time.perf_counter()
    found = measure(source.chunks(rows), len(rows), source.width, progress, device)
    seconds = time.perf_counter() - start
    return {**found.numbers(), "excluded_rows": source.failed, "seconds": seconds}, found


def settings(split: str | None) -> dict[str, Any]:
    """What the `scores` artifact records of how it was made, before its input is known."""
    return {"task": "odcorr", "split": split or ""}


def scored(source: features.Features) -> dict[str, Any]:
    """What the artifact records of the embeddings: as `probe` does, and which images they are."""
    known = source.scored() | ({"images": source.images} if source.images else {})
    return {"scored": known} if known else {}


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


def notes(numbers: Mapping[str, float]) -> list[str]:
    """What a person should know of the rows."""
    said = []
    if numbers["excluded_rows"]:
        said.append(f"{_count(numbers['excluded_rows'], 'row')} left out: no embedding")
    if numbers["constant_rows"]:
        counted = _count(numbers["constant_rows"], "constant row")
        said.append(f"{counted} left out; the encoder may be broken")
    return said


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun} is" if number == 1 else f"{number:.0f} {noun}s are"


def lines(numbers: Mapping[str, float]) -> list[str]:
    """The summary for a terminal."""
    n, k, side = (int(numbers[name]) for name in ("n", "k", "gram_side"))
    found = [
        f"ODCorr {numbers['odcorr']:.4f}   floor {numbers['floor']:.4f} (K = {k})",
        f"RankMe {numbers['rankme']:.1f} of {min(n, k)}",
    ]
    if "alpha" in numbers:
        first, last = int(numbers["alpha_first"]), int(numbers["alpha_last"])
        found.append(f"alpha  {numbers['alpha']:.2f}   fitted to variances {first} to {last}")
    if "top1" in numbers:
        one, ten = 100 * numbers["top1"], 100 * numbers["top10"]
        found.append(f"variance in the first direction {one:.1f} %, in the first ten {ten:.1f} %")
    where = "GPU" if numbers.get("gpu") else "CPU"
    found.append(
        f"rows   {n}, {numbers['constant_rows']:.0f} constant left out; "
        f"{side} x {side} sums on the {where}, {numbers['seconds']:.1f} s"
    )
    return found


def _sums_for(rows: int, width: int, device: str) -> tuple[grams.Summing, bool]:
    """What sums, and whether it is on a GPU."""
    if rows <= width:
        return grams.Rows(), False
    hidden = device == "auto" and not any(map(os.path.exists, DRIVERS))
    if device in ("cpu", "mps") or hidden:
        return grams.Grams(width), False
    from pathfm_cli.model import device as devices

    picked = devices.pick(device)
    if picked.type != "cuda":
        return grams.Grams(width), False
    return grams.DeviceGrams(width, picked), True
