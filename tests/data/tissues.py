"""What the tests of tissue share: the slide of the package, the type of a fixture, a raster."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely

from pathfm_cli import artifacts

ROOT = Path(__file__).parents[2]
DEMO_SLIDE = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"

MakeTissue = Callable[..., artifacts.Table]
"""The fixture `make_tissue`."""


def rasterised(shape: shapely.Geometry, side: int, step: float = 1.0) -> np.ndarray:
    """Whether the centre of each `step` x `step` cell of a square lies inside."""
    centres = np.arange(0, side, step) + step / 2
    x, y = np.meshgrid(centres, centres)
    return np.asarray(shapely.contains_xy(shape, x, y))
