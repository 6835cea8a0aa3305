"""Sums over rows from which ODCorr and the spectra follow, all in float64.

Legend: N rows, n rows of a block, K width. u_i is row i, centred over its K numbers and scaled to
length 1, so that u_i . u_j is the correlation of rows i and j, and sum_i |u_i|^4 is N.
"""

from __future__ import annotations

import dataclasses
import math
from concurrent import futures
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pathfm_cli import errors
from pathfm_cli.tasks import spectrum

if TYPE_CHECKING:
    import torch

F64 = npt.NDArray[np.float64]
BLOCK_ROWS = 4096
"""Rows multiplied at once: 32 MB of float64 at K = 1024, four times."""
TILE_NUMBERS = 1 << 17
"""Numbers prepared at once: 1 MB, so that every step but the first finds them in the cache."""

_EPS = float(np.finfo(np.float64).eps)
_LEAST_SQUARE = float(np.finfo(np.float64).tiny) / _EPS**2
"""Below it squares of what is left at round-off lose digits, or are 0."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """What all rows together give."""

    used: int
    """Rows that are not constant; only these count."""
    off_diagonal: float
    """Sum of rho_ij^2 over i != j."""
    singular_R: F64
    """Singular values of the rows, falling."""
    variances_R: F64
    """Eigenvalues of their covariance (over N, the mean row taken off), falling."""


class Summing(Protocol):
    """Takes blocks of rows, then tells their sums."""

    def add(self, block_nK: npt.NDArray[Any]) -> None:
        """Take the rows of a float array."""

    def finish(self) -> Sums:
        """The sums; ask at most once."""


class Rows:
    """For N <= K: keeps all rows, and sums the N x N matrix of the definition itself."""

    def __init__(self) -> None:
        self._values: list[F64] = []
        self._units: list[F64] = []

    def add(self, block_nK: npt.NDArray[Any]) -> None:
        """Take the rows of a float array."""
        values, units = _unit_rows(block_nK.astype(np.float64))
        self._values.append(values)
        self._units.append(units)

    def finish(self) -> Sums:
        """The sums; ask at most once."""
        units = np.concatenate(self._units)
        if len(units) < 2:
            return _too_few(len(units))
        correlations = units @ units.T
        np.fill_diagonal(correlations, 0.0)
        values = np.concatenate(self._values)
        scale = float(np.einsum("nk,nk->", values, values)) / len(values)
        _refuse_range(scale)
        singular = np.asarray(np.linalg.svd(values, compute_uv=False), dtype=np.float64)
        centred = values - values.mean(axis=0)
        variances = np.linalg.eigvalsh(centred @ centred.T / len(values))
        return Sums(
            len(units),
            _square_sum(correlations),
            singular,
            spectrum.significant(variances, scale),
        )


class _Buffers(NamedTuple):
    """A block, prepared."""

    units_nK: F64
    values_nK: F64


class Grams:
    """For N > K: adds up K x K matrices, so memory does not grow with N.

    A thread multiplies one block while the next is read and prepared; the order of the sums stays.
    """

    def __init__(self, width: int) -> None:
        self._unit_KK = np.zeros((width, width))
        self._spread_KK = np.zeros((width, width))
        self._product_KK = np.empty((width, width))
        shape = (2, BLOCK_ROWS, width)
        self._buffers = [_Buffers(*np.empty(shape)), _Buffers(*np.empty(shape))]
        self._thread = futures.ThreadPoolExecutor(1, "pathfm-grams")
        self._product: futures.Future[None] | None = None
        self._sum_K = np.zeros(width)
        self._origin_K: F64 | None = None
        self._used = 0

    def add(self, block_nK: npt.NDArray[Any]) -> None:
        """Take the rows of a float array."""
        for start in range(0, len(block_nK), BLOCK_ROWS):
            buffers = self._buffers[0]
            count = self._fill(block_nK[start : start + BLOCK_ROWS], buffers)
            self._wait()
            self._product = self._thread.submit(self._multiply, buffers, count)
            self._buffers.reverse()
            self._used += count

    def _multiply(self, buffers: _Buffers, count: int) -> None:
        pairs = (self._unit_KK, buffers.units_nK), (self._spread_KK, buffers.values_nK)
        # A thread has warnings of its own; what overflows is refused at the end.
        with np.errstate(over="ignore", invalid="ignore"):
            for sums, rows in pairs:
                # numpy computes A.T @ A by the symmetric routine, at half the work.
                np.matmul(rows[:count].T, rows[:count], out=self._product_KK)
                sums += self._product_KK

    def _wait(self) -> None:
        if self._product is not None:
            self._product.result()

    def _fill(self, block_nK: npt.NDArray[Any], buffers: _Buffers) -> int:
        """Put rows that are not constant into both buffers, by tiles that stay in the cache."""
        tile_rows = max(1, TILE_NUMBERS // block_nK.shape[1])
        count = 0
        for start in range(0, len(block_nK), tile_rows):
            values, units = _unit_rows(block_nK[start : start + tile_rows].astype(np.float64))
            if not len(values):
                continue
            # Around a row near the mean: the covariance keeps its digits where the mean is large.
            if self._origin_K is None:
                self._origin_K = values.mean(axis=0)
            into = slice(count, count + len(values))
            buffers.units_nK[into] = units
            np.subtract(values, self._origin_K, out=buffers.values_nK[into])
            self._sum_K += buffers.values_nK[into].sum(axis=0)
            count += len(values)
        return count

    def finish(self) -> Sums:
        """The sums; ask at most once."""
        self._wait()
        self._thread.shutdown()
        if self._origin_K is None or self._used < 2:
            return _too_few(self._used)
        return _sums(
            self._used,
            _square_sum(self._unit_KK) - self._used,
            self._spread_KK,
            self._sum_K,
            self._origin_K,
        )


class DeviceGrams:
    """`Grams` on a torch device that has float64, such as CUDA."""

    def __init__(self, width: int, device: torch.device) -> None:
        import torch

        self._torch = torch
        zeros = torch.zeros((width, width), dtype=torch.float64, device=device)
        self._unit_KK, self._spread_KK = zeros, zeros.clone()
        self._sum_K = zeros[0].clone()
        self._origin_K: torch.Tensor | None = None
        self._used = 0

    def add(self, block_nK: npt.NDArray[Any]) -> None:
        """Take the rows of a float array."""
        values = self._torch.tensor(block_nK).to(self._sum_K.device, self._torch.float64)
        # By a power of two, so that no square leaves the range; 1000 keeps the factor in it too.
        exponents = self._torch.frexp(values.abs().amax(dim=1, keepdim=True)).exponent
        near = values * self._torch.exp2(-exponents.clamp(-1000, 1000).to(values.dtype))
        units = near - near.mean(dim=1, keepdim=True)
        lengths, norms = units.norm(dim=1), near.norm(dim=1)
        varies = lengths > _round_off(values.shape[1]) * norms
        values, units = values[varies], units[varies] / lengths[varies, None]
        if not len(values):
            return
        self._unit_KK += units.T @ units
        if self._origin_K is None:
            self._origin_K = values.mean(dim=0)
        values = values - self._origin_K
        self._spread_KK += values.T @ values
        self._sum_K += values.sum(dim=0)
        self._used += len(values)

    def finish(self) -> Sums:
        """The sums; ask at most once."""
        if self._origin_K is None or self._used < 2:
            return _too_few(self._used)
        off_diagonal = float((self._unit_KK**2).sum()) - self._used
        matrices = (self._spread_KK, self._sum_K, self._origin_K)
        return _sums(self._used, off_diagonal, *(part.cpu().numpy() for part in matrices))


def _sums(used: int, off_diagonal: float, spread_KK: F64, sum_K: F64, origin_K: F64) -> Sums:
    """Both spectra from the sums of (z - origin)(z - origin)^T and of z - origin."""
    cross_KK = np.outer(origin_K, sum_K)
    raw_KK = spread_KK + cross_KK + cross_KK.T + used * np.outer(origin_K, origin_K)
    scale = float(np.trace(raw_KK)) / used
    _refuse_range(scale)
    mean_K = sum_K / used
    covariance_KK = spread_KK / used - np.outer(mean_K, mean_K)
    singular = np.sqrt(spectrum.significant(np.linalg.eigvalsh(raw_KK)))
    variances = spectrum.significant(np.linalg.eigvalsh(covariance_KK), scale)
    return Sums(used, off_diagonal, singular, variances)


def _refuse_range(mean_square: float) -> None:
    """The spectrum squares all rows as they are, which float64 must be able to hold."""
    if not mean_square < math.inf:
        raise errors.InputError(
            "The embeddings are too large to square in float64.", "divide them by a constant"
        )
    if mean_square < _LEAST_SQUARE:
        raise errors.InputError(
            "The embeddings are too small to square in float64.", "multiply them by a constant"
        )


def _too_few(used: int) -> Sums:
    empty = np.zeros(0)
    return Sums(used, math.nan, empty, empty)


def _unit_rows(values_nK: F64) -> tuple[F64, F64]:
    """The rows that are not constant up to round-off, as they are, and centred and of length 1."""
    units, squares, totals = _centred(values_nK)
    far = ~((totals > _LEAST_SQUARE) & (totals < math.inf))
    if far.any():
        # By a power of two, which is exact, so that no square leaves the range of float64.
        exponents = np.frexp(np.abs(values_nK[far]).max(axis=1))[1]
        near = np.ldexp(values_nK[far], -exponents[:, None])
        units[far], squares[far], totals[far] = _centred(near)
    varies = np.sqrt(squares) > _round_off(values_nK.shape[1]) * np.sqrt(totals)
    if not varies.all():
        values_nK, units, squares = values_nK[varies], units[varies], squares[varies]
    units /= np.sqrt(squares)[:, None]
    return values_nK, units


def _centred(values_nK: F64) -> tuple[F64, F64, F64]:
    """Rows without their means, the squares of their lengths, and those before centring."""
    means = values_nK.mean(axis=1, keepdims=True)
    units = values_nK - means
    squares = np.einsum("nk,nk->n", units, units)
    return units, squares, squares + values_nK.shape[1] * means[:, 0] ** 2


def _round_off(width: int) -> float:
    """Relative length that is left of a constant row once its mean is taken off, at most."""
    return math.sqrt(width) * _EPS


def _square_sum(matrix: F64) -> float:
    flat = matrix.ravel()
    return float(flat @ flat)
