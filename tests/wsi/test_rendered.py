"""Slides of other vendors, through openslide."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import servers

from pathfm_cli import errors
from pathfm_cli.data import cohort, headers, index
from pathfm_cli.wsi import rendered, store, virtual

openslide = pytest.importorskip("openslide")
NAME = "fluorescence-DAPI.ndpi"


@pytest.fixture
def ndpi(formats_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    return Path(shutil.copy(formats_folder / NAME, tmp_path / "slides"))


def on_white(image) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


def test_pixels_are_those_of_openslide(ndpi: Path, tmp_path: Path) -> None:
    done = index.index([str(ndpi)], tmp_path / "s.parquet")
    assert done.notes == (
        "1 slides are read through openslide (openslide:hamamatsu): local only, slower",
    )
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    row = found.table.frame.row(0, named=True)
    assert (row["vendor"], row["mpp_source"], row["objective"]) == (
        "openslide:hamamatsu",
        "openslide",
        40.0,
    )
    assert (slide.uri, slide.mpp) == (f"{ndpi}#openslide", pytest.approx(0.22817505))
    assert slide.size_bytes == ndpi.stat().st_size
    truth = openslide.OpenSlide(ndpi)
    assert [(level.width_px, level.height_px) for level in slide.levels] == list(
        truth.level_dimensions
    )
    for level, x, y in ((0, 1000, 2000), (0, 3800, 4700), (2, 256, 512), (6, 0, 0)):
        scale = 2**level
        expected = on_white(truth.read_region((x * scale, y * scale), level, (300, 290)))
        ours = found.reader.read_region(slide, x, y, level, 300, 290)
        inside = (slice(0, 290), slice(0, 300))
        if level == 6:
            inside = (slice(0, 76), slice(0, 62))
            assert (ours[76:] == 255).all() and (ours[:, 62:] == 255).all()
        assert np.abs(ours[inside].astype(int) - expected[inside]).max() <= 1
    assert found.reader.read_patch(slide, 1000, 2000, 0.5, 100).std() > 0
    assert found.reader.read_thumbnail(slide, 16.0).shape == (69, 57, 3)


def test_the_virtual_zarr_has_them_too(ndpi: Path, tmp_path: Path) -> None:
    index.index([str(ndpi)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    group = virtual.open(tmp_path / "s.parquet")
    array = group["fluorescence-DAPI/1"][:, 500:700, 900:1200]
    ours = found.reader.read_region(found.slides[0], 900, 500, 1, 300, 200)
    assert (np.moveaxis(array, 0, -1) == ours).all()


def test_again_reads_only_what_changed(
    ndpi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.parquet"
    index.index([str(ndpi)], out)
    assert index.index([str(ndpi)], out).notes[0] == f"{out} is up to date"
    other = Path(shutil.copy(ndpi, ndpi.with_name("other.ndpi")))
    names, read = [], headers.read
    monkeypatch.setattr(headers, "read", lambda f, o: names.append(f.source.slide) or read(f, o))
    index.index([str(ndpi.parent)], out)
    assert names == ["other"]
    slides = cohort.open_cohort(out).slides
    other.touch()
    store.forget(slides[1].uri)
    reader = cohort.open_cohort(out).reader
    with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
        reader.read_region(slides[1], 0, 0, 0, 9, 9)


def test_a_root_holds(ndpi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.index([str(ndpi)], tmp_path / "s.parquet", root=ndpi.parent)
    assert pl.read_parquet(tmp_path / "s.parquet")["uri"].to_list() == [f"{NAME}#openslide"]
    monkeypatch.chdir("/")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    assert found.reader.read_region(found.slides[0], 0, 0, 6, 9, 9).shape == (9, 9, 3)


def test_what_cannot_be_read_is_an_error(ndpi: Path, tmp_path: Path) -> None:
    with servers.web(ndpi.parent) as address:
        index.index([f"{address}/{NAME}"], tmp_path / "r.parquet")
    (text,) = pl.read_parquet(tmp_path / "r.parquet")["error"]
    assert text == "a Hamamatsu NDPI, which only openslide reads, and that only from a local disk"
    (ndpi.parent / "cut.ndpi").write_bytes(ndpi.read_bytes()[:300_000])
    (ndpi.parent / "odd.scn").write_bytes(b"nothing known")
    done = index.index([str(ndpi.parent)], tmp_path / "s.parquet")
    assert [slide for slide, _ in done.failures] == ["cut", "odd"]
    assert done.failures[1][1].startswith("a file of unknown type")


def test_open_slides_are_bounded(ndpi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "OPEN_SLIDES", 2)
    for number in range(4):
        copy = shutil.copy(ndpi, ndpi.with_name(f"{number}.ndpi"))
        source = store.Source.open(f"{copy}{rendered.MARK}")
        assert len(source.read(3 * rendered.TILE_BYTES - 5, 10)) == 10
        assert len(rendered._open) <= 2
    with pytest.raises(errors.SlideError, match="does not exist"):
        store.Source.open(f"{ndpi}.gone{rendered.MARK}")


def test_without_the_extra_the_row_says_so(ndpi: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['openslide'] = None\n"
        "from pathlib import Path; from pathfm_cli.data import index\n"
        "done = index.index([sys.argv[1]], Path(sys.argv[2]))\n"
        "sys.stdout.write(done.failures[0][1])"
    )
    command = [sys.executable, "-c", code, str(ndpi), str(tmp_path / "s.parquet")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == "a Hamamatsu NDPI, which needs an extra: pip install 'pathfm[openslide]'"
