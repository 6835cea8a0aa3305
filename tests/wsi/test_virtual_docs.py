"""The examples of docs/virtual-zarr.md run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

from pathfm_cli.data import cohort, index

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "virtual-zarr.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the first example leaves behind, in a folder with an index."""
    index.index([str(ROOT / "pathfm_cli" / "demo_data")], tmp_path / "slides.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    return names


def test_the_first_example_reads_the_pixels_of_the_reader(page: dict[str, object]) -> None:
    found = cohort.open_cohort("slides.parquet")
    expected = found.reader.read_region(found.slides[0], 500, 1000, 0, 256, 256)
    np.testing.assert_array_equal(page["region"].transpose(1, 2, 0), expected)


def test_dask(page: dict[str, object]) -> None:
    pytest.importorskip("dask.array")
    exec(BLOCKS[1], page)
    part = page["same"][:, 1000:1256, 500:756].compute()
    np.testing.assert_array_equal(part, page["region"])


def test_xarray(page: dict[str, object]) -> None:
    pytest.importorskip("xarray")
    exec(BLOCKS[2], page)
    part = page["level"].isel(y=slice(1000, 1256), x=slice(500, 756))
    np.testing.assert_array_equal(part.values, page["region"])


def test_ome_zarr(page: dict[str, object]) -> None:
    pytest.importorskip("ome_zarr.io")
    exec(BLOCKS[3], page)
    part = page["node"].data[0][:, 1000:1256, 500:756].compute()
    np.testing.assert_array_equal(part, page["region"])


class Viewer:
    """Takes the place of a window: keeps the layers in napari's own model of a viewer."""

    def __init__(self) -> None:
        from napari import components

        self.model = components.ViewerModel()
        self.add_image = self.model.add_image


def test_napari(page: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    napari = pytest.importorskip("napari", exc_type=ImportError)
    pytest.importorskip("napari_ome_zarr", exc_type=ImportError)
    monkeypatch.setattr(napari, "Viewer", Viewer)
    monkeypatch.setattr(napari, "run", lambda: None)
    exec(BLOCKS[1], page)
    exec(BLOCKS[4], page)
    exec(BLOCKS[5], page)
    colour, *channels = page["viewer"].model.layers
    part = np.asarray(colour.data[0][1000:1256, 500:756])
    np.testing.assert_array_equal(part.transpose(2, 0, 1), page["region"])
    for channel, expected in zip(channels, page["region"], strict=True):
        np.testing.assert_array_equal(np.asarray(channel.data[0][1000:1256, 500:756]), expected)
    # Both lie in the same place: micrometres.
    assert channels[0].extent.world == pytest.approx(colour.extent.world[:, :2], abs=0.6)


def test_every_example_is_run() -> None:
    assert len(BLOCKS) == 6
