"""CoNSeP's label maps, .mat: types of nuclei as the paper's four classes, or nuclei by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import io as scipy_io

from pathfm_cli import errors

KEY = "type_map"
OBJECTS = "inst_map"
CLASSES = ("background", "other", "inflammatory", "epithelial", "spindle-shaped")
MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4], dtype=np.uint8)
"""The seven published types: 3, 4 are epithelial, 5, 6, 7 spindle-shaped (paper IV-A)."""
MAX_PX = 16_000_000
_NUMERIC = (
    "double",
    "single",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "logical",
)


def read(path: str | Path, *, objects: bool = False) -> npt.NDArray[np.integer[Any]]:
    """Read a label map, (H, W): classes 0 to 4 of `type_map`, or numbers of objects of `inst_map`.

    Only the header of other variables is looked at; nothing in the file is executed.

    Raises:
        errors.SlideError: missing, damaged, too large, no such map, or a type beyond 7.
    """
    key = OBJECTS if objects else KEY
    if not Path(path).is_file():
        raise errors.SlideError(f"the label map {path} does not exist")
    try:
        _check(path, key, scipy_io.whosmat(path))
        numbers = np.asarray(scipy_io.loadmat(path, variable_names=[key])[key])
    except errors.SlideError:
        raise
    except Exception as error:  # the reader meets hostile bytes and raises whatever they provoke
        raise errors.SlideError(f"the label map cannot be decoded: {path}") from error
    if objects:
        if not (np.isfinite(numbers).all() and (np.abs(numbers) < MAX_PX).all()):
            raise errors.SlideError(f"{path} holds what is no number of an object")
        return numbers.astype(np.int64)
    if not np.isin(numbers, np.arange(len(MERGED))).all():
        raise errors.SlideError(f"{path} holds a type that is none of 0 to {len(MERGED) - 1}")
    merged: npt.NDArray[np.uint8] = MERGED[numbers.astype(np.intp)]
    return merged


def _check(path: str | Path, key: str, variables: list[tuple[Any, ...]]) -> None:
    found = {name: (shape, kind) for name, shape, kind in variables}
    if key not in found:
        raise errors.SlideError(f"{path} has no {key}")
    shape, kind = found[key]
    if kind not in _NUMERIC or len(shape) != 2 or shape[0] * shape[1] > MAX_PX:
        raise errors.SlideError(f"{path} has a {key} of {kind} {shape}")
