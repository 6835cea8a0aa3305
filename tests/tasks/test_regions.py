"""A decoder on the demo slide: polygons against the pixels themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shapely
import torch
from safetensors import torch as safetensors_torch

import pathfm_cli
from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw, finders, index, mask
from pathfm_cli.model import weights
from pathfm_cli.tasks import decoder, masks, regions, request, segment, segmentation, source, tokens

DEMO = Path(pathfm_cli.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
MPP, SIZE, STRIDE = 4.0, 64, 48


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    index.index([str(DEMO)], folder / "slides.parquet")
    mask.mask(folder / "slides.parquet", folder / "tissue.parquet", finders.Otsu())
    return folder / "tissue.parquet"


@pytest.fixture(scope="module")
def encoder():
    return weights.load("random/vit_tiny_patch16_224", image_size_px=SIZE, device="cpu")


class Dark(torch.nn.Module):
    """Classes 1, 2 and 3 where a pixel is light, dark, darker; its tokens are the pixels."""

    def shares(self, tokens_BSS3, size_px):
        grey = tokens_BSS3.mean(-1)
        found = 1 + (grey < 200).long() + (grey < 140).long()
        return torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float()


@pytest.fixture
def dark(monkeypatch):
    monkeypatch.setattr(tokens, "encode", lambda encoder, images, features: images.float())
    return regions.Trained(
        Dark(), ("background", "light", "dark", "darker"), SIZE, "post-norm", "scores:x"
    )


def patches(tissue, stride=STRIDE):
    grid = source.Grid(draw.SampleConfig(mpp=(MPP,), size_px=SIZE, min_tissue=0.1), stride)
    return source.tissue(tissue, grid)


def test_polygons_cover_all_tissue_once(tissue, encoder, dark, tmp_path):
    """Every pixel of the tissue lies in one polygon, of the class that its patch says."""
    data = source.tissue(tissue, request.whole_grid(str(MPP), SIZE, STRIDE))
    out = tmp_path / "r.parquet"
    record, failed = regions.find(data, encoder, dark, out)
    assert failed == [] and record["kind"] == "regions"
    frame = artifacts.read_table(out, "regions").frame
    slide = data.table.frame.row(0, named=True)
    scale = MPP / slide["mpp"]
    areas = {
        label: shapely.union_all(shapely.from_wkb(rows["geometry"].to_list()))
        for (label,), rows in frame.group_by("label")
    }
    assert set(areas) == {"light", "dark", "darker"}
    everything = shapely.union_all(list(areas.values()))
    assert everything.area == pytest.approx(sum(area.area for area in areas.values()), rel=1e-6)
    inside = shapely.box(0, 0, slide["width_px0"] - scale, slide["height_px0"] - scale)
    seen = shapely.from_wkb(slide["geometry"]).intersection(inside)
    assert seen.difference(everything).area < 1e-4 * seen.area
    for row in range(data.rows.height):
        grey = data.read(row).astype(np.float32).mean(-1)
        y, x = 45, 40  # in the middle of every patch, also of the last ones, moved inside
        point = shapely.Point(
            data.rows["x_px0"][row] + (x + 0.5) * scale, data.rows["y_px0"][row] + (y + 0.5) * scale
        )
        found = {"light": 200 <= grey, "dark": (140 <= grey) & (grey < 200), "darker": grey < 140}
        for label, pixels in found.items():
            assert areas[label].contains(point) == pixels[y, x]
    # Neighbours are joined: no two polygons of a class share an edge.
    shapes = shapely.from_wkb(frame.filter(pl.col("label") == "darker")["geometry"].to_list())
    tree = shapely.STRtree(shapes)
    left, right = tree.query(shapes, predicate="intersects")
    shared = shapely.length(shapely.intersection(shapes[left], shapes[right]))
    assert (shared[left != right] == 0).all()


def test_rerun_and_other_sizes(tissue, encoder, dark, tmp_path):
    data, out = patches(tissue, SIZE), tmp_path / "r.parquet"
    record, _ = regions.find(data, encoder, dark, out)
    before = out.stat().st_mtime_ns
    assert regions.find(data, encoder, dark, out)[0]["id"] == record["id"]
    assert out.stat().st_mtime_ns == before
    with pytest.raises(errors.OutputClash, match="other inputs|stride"):
        regions.find(patches(tissue), encoder, dark, out)
    grid = source.Grid(draw.SampleConfig(mpp=(MPP,), size_px=96), 96)
    with pytest.raises(errors.UsageError, match="trained on 64 px"):
        regions.find(source.tissue(tissue, grid), encoder, dark, tmp_path / "x.parquet")


def test_a_patch_that_cannot_be_read_is_a_row(tissue, encoder, dark, tmp_path):
    data = patches(tissue, SIZE)

    def read(row):
        if row == 1:
            raise errors.SlideError("a tile is damaged")
        return data.read(row)

    broken = source.Source(
        **{name: getattr(data, name) for name in data.__slots__ if name != "read"}, read=read
    )
    record, failed = regions.find(broken, encoder, dark, tmp_path / "r.parquet")
    assert record["failed"] == 1
    assert failed == [(data.rows["slide"][1], f"{data.rows['id'][1]}: a tile is damaged")]


def test_qupath_reads_detections_of_each_class(tissue, encoder, dark, tmp_path):
    out = tmp_path / "r.parquet"
    record, _ = regions.find(patches(tissue, SIZE), encoder, dark, out)
    assert regions.export(out, tmp_path / "qupath") == 1
    file = tmp_path / "qupath" / "CMU-1-Small-Region.geojson"
    features = json.loads(file.read_text())["features"]
    assert len(features) == record["rows"]
    assert {f["properties"]["objectType"] for f in features} == {"detection"}
    assert {f["properties"]["classification"]["name"] for f in features} == {
        *("light", "dark", "darker")
    }
    assert {f["geometry"]["type"] for f in features} == {"Polygon"}
    assert regions.export(out, tmp_path / "qupath") == 1
    file.write_text(file.read_text().replace("darker", "darkest"))
    with pytest.raises(errors.OutputClash, match="was edited"):
        regions.export(out, tmp_path / "qupath")
    assert sum("polygons" in line for line in regions.summary(record, out)) == 4


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    from PIL import Image

    rng = np.random.default_rng(0)
    items = []
    for number, split in enumerate(("train", "test")):
        label = np.zeros((SIZE, SIZE), np.uint8)
        label[:32] = 1
        image = np.where(label[..., None] > 0, 60, 220) + rng.integers(0, 9, (SIZE, SIZE, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}-label.png")
        names = folder / f"{number}.png", folder / f"{number}-label.png"
        items.append(masks.Item(str(number), *names, split))
    config = segmentation.Config(
        crops=4, size_px=SIZE, stride_px=STRIDE, decoder="conv", training=segmentation.Training()
    )
    segment.segment(items, encoder, folder / "out", config)
    return folder / "out"


def test_the_decoder_comes_back_as_it_was(trained, encoder):
    found = regions.load(trained, encoder)
    assert (found.classes, found.size_px) == (("background", "1"), SIZE)
    grid = torch.randn((1, 4, 4, 192), generator=torch.Generator().manual_seed(0))
    fresh = decoder.build("conv", 192, 2, seed=0).shares(grid, SIZE)
    assert not torch.allclose(found.module.shares(grid, SIZE), fresh, atol=1e-3)
    assert found.scores == f"scores:{artifacts.read_header(trained / 'scores.parquet').id}"


def test_a_decoder_of_another_encoder_or_a_damaged_one(trained, encoder, tmp_path):
    other = weights.load("random/vit_tiny_patch16_224", seed=1, image_size_px=SIZE, device="cpu")
    with pytest.raises(errors.UsageError, match="trained on another encoder"):
        regions.load(trained, other)
    with pytest.raises(errors.InputError, match="does not exist"):
        regions.load(tmp_path, encoder)
    for name in ("scores.parquet", "scores.json", "decoder.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "decoder.safetensors").write_bytes(b"broken")
    with pytest.raises(errors.InputError, match="no decoder that can be used"):
        regions.load(tmp_path, encoder)
    tensors = safetensors_torch.load_file(trained / "decoder.safetensors")
    tensors["run0.classify.bias"][0] = float("nan")
    (tmp_path / "decoder.safetensors").write_bytes(safetensors_torch.save(tensors))
    with pytest.raises(errors.InputError, match="no decoder that can be used"):
        regions.load(tmp_path, encoder)


@pytest.mark.parametrize(
    ("kept", "converged", "bias"), [([0, 1], [1], 1.0), ([2, 1], [1, 2], 2.0), ([0, 1], [2], None)]
)
def test_the_first_kept_run_that_converged_is_used(
    trained, encoder, tmp_path, kept, converged, bias
):
    (tmp_path / "scores.parquet").write_bytes((trained / "scores.parquet").read_bytes())
    document = json.loads((trained / "scores.json").read_text())
    document["kept"] = kept
    document["attempts"] = [{"run": run, "converged": run in converged} for run in range(3)]
    (tmp_path / "scores.json").write_text(json.dumps(document))
    tensors = safetensors_torch.load_file(trained / "decoder.safetensors")
    of_run = {
        f"run{run}.{name.removeprefix('run0.')}": torch.full_like(tensor, float(run))
        for run in range(3)
        for name, tensor in tensors.items()
    }
    (tmp_path / "decoder.safetensors").write_bytes(safetensors_torch.save(of_run))
    if bias is None:
        with pytest.raises(errors.InputError, match="No decoder of .* converged"):
            regions.load(tmp_path, encoder)
    else:
        assert regions.load(tmp_path, encoder).module.classify.bias.tolist() == [bias] * 2
