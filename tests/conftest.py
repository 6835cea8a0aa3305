"""Real slides of the shared data, and a synthetic pyramid whose pixels encode their position."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ramps
import tifffile

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests side by side share the cores: threads of torch would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest of the slow tests first: the last to start costs its whole length."""

    def seconds(item: pytest.Item) -> int:
        mark = item.get_closest_marker("slow")
        return mark.args[0] if mark and mark.args else 0

    items.sort(key=seconds, reverse=True)


@pytest.fixture(scope="session")
def slides_folder() -> Path:
    """Twelve slides made of real scans."""
    if not (SHARED / "slides").is_dir():
        pytest.skip("the real slides of ../shared/data are not there")
    return SHARED / "slides"


@pytest.fixture(scope="session")
def formats_folder() -> Path:
    """Odd, foreign and broken files."""
    if not (SHARED / "formats").is_dir():
        pytest.skip("the odd files of ../shared/data are not there")
    return SHARED / "formats"


@pytest.fixture
def make_pyramid(tmp_path: Path) -> ramps.MakePyramid:
    """Write a tiled TIFF with a pattern of the level-0 coordinates of each pixel's centre."""

    def make(
        name: str = "ramp.tif",
        *,
        size: tuple[int, int] = (1024, 768),
        factors: tuple[int, ...] = (1, 2, 4),
        mpp: float = 0.25,
        pattern: Callable[[tuple[int, int], int], np.ndarray] = ramps.ramp,
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as file:
            for factor in factors:
                file.write(
                    pattern(size, factor),
                    **{
                        "tile": (64, 64),
                        "photometric": "rgb",
                        "compression": "zlib",
                        "resolution": (1e4 / mpp / factor, 1e4 / mpp / factor),
                        "resolutionunit": "CENTIMETER",
                        "subfiletype": int(factor > 1),
                        "metadata": None,
                        **options,
                    },
                )
        return path

    return make
