"""Make torchvision, and with it timm, importable beside a torch it was not built for.

pip pairs a CPU torch with a CUDA build of torchvision. Its compiled library then cannot be loaded,
and importing the package fails because it describes operators that nobody defined. Defining the two
operators without a kernel is enough for the Python half: transforms, `resnet` and timm work; `nms`
and the JPEG decoder do not. A torchvision that fits its torch is left untouched.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


@functools.cache
def apply() -> Any:
    """Define torchvision's missing operators, once, before its first import.

    Returns:
        The library that holds the definitions (they vanish with it), or None where nothing had to
        be done: torchvision is absent, or its own operators can be loaded.
    """
    compiled = _compiled()
    if compiled is None or _loads(compiled):
        return None
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        library.define(f"{name}{_SIGNATURE}")
    return library


def _compiled() -> Path | None:
    """The compiled library of the installed torchvision, found without importing the package."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("_C*.*"))
    return found[0] if found else None


def _loads(library: Path) -> bool:
    """Whether torch can load `library`; torchvision's own later load of it is then a no-op."""
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True
