from typing import Any

import numpy as np

def decode(
    prefix: bytes,
    data: bytes | memoryview,
    width: int,
    height: int,
    x: int,
    y: int,
    out: np.ndarray[Any, np.dtype[np.uint8]],
    scale: int,
) -> bool: ...
