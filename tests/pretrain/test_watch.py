"""Looks at the teacher: what they say, and that the run is the same without them."""

import json
import logging
import sys

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pathfm_cli import artifacts, errors
from pathfm_cli.model import weights
from pathfm_cli.pretrain import book, folder, networks, place, probe, run, sheets, train, watch
from pathfm_cli.tasks import features, odcorr, quick, runs, source

HERE = place.Place(0, 1, torch.device("cpu"))


def begin(tissue, path, settings):
    header = run.identity(tissue, settings)
    folder.prepare(path, header, settings, overwrite=False)
    probe.record(tissue, path / folder.PATCHES, settings)
    return book.Job(tissue, path, header, settings)


def whole(tissue, path, settings):
    train.train(begin(tissue, path, settings), HERE, lambda: False)
    return path


def looks(path):
    rows = [json.loads(line) for line in (path / folder.WATCH).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Red and blue squares, 8 to train on and 4 to test of each."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name, channel in (("red", 0), ("blue", 2)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 190
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def watched(tissue, micro, labelled, tmp_path_factory):
    settings = micro("train.watch_every=5", f'train.watch_data="{labelled}"')
    return whole(tissue, tmp_path_factory.mktemp("watched") / "run", settings)


def test_it_looks_before_between_and_after(watched):
    assert [row["step"] for row in looks(watched)] == [0, 5, 10, 12]
    table = pl.read_parquet(watched / folder.WATCH_TABLE)
    assert table["odcorr"].to_list() == [row["odcorr"] for row in looks(watched)]
    assert table["seconds"].min() > 0


def test_the_last_look_is_that_of_the_exported_teacher(watched, labelled):
    """Once more from the files, by the definitions: numpy.corrcoef, SVD, votes counted by hand."""
    last = looks(watched)[-1]
    encoder = weights.load(str(watched), device="cpu")
    data = source.patches(watched / folder.PATCHES)
    vectors = encoder.encode([data.read(row) for row in range(data.rows.height)]).numpy()
    correlations = np.corrcoef(vectors.astype(np.float64))
    off = correlations[~np.eye(len(vectors), dtype=bool)]
    assert last["odcorr"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5)
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    assert last["rankme"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert (last["patches"], last["failed_patches"]) == (6, 0)
    assert last["floor"] == pytest.approx(1 / np.sqrt(23))
    assert last["chance"] == 0.5 and last["failed_images"] == 0
    assert last["linear"] == 1.0


def test_the_last_look_is_what_odcorr_says_of_a_run_on_density(tissue, micro, tmp_path):
    changes = ("train.watch_every=12", "model.input=density", "model.global_pool=avg")
    path = whole(tissue, tmp_path / "run", micro(*changes))
    embedded = runs.embed_run(path, None, tmp_path, device="cpu", precision="fp32")
    expected = odcorr.odcorr(features.open_features(embedded), None).record["metrics"]
    last = looks(path)[-1]
    assert last["odcorr"] == pytest.approx(expected["odcorr"], rel=1e-6)
    assert last["rankme"] == pytest.approx(expected["rankme"], rel=1e-6)


def test_watching_changes_no_weight_and_no_identity(tissue, micro, watched, tmp_path):
    bare = whole(tissue, tmp_path / "run", micro("train.watch_every=0"))
    for file in (folder.RESULT, f"{folder.CHECKPOINTS}/step-000012/optimiser.safetensors"):
        assert (bare / file).read_bytes() == (watched / file).read_bytes()
    assert artifacts.read_header(bare).id == artifacts.read_header(watched).id
    assert not (bare / folder.WATCH).exists() and not (bare / folder.CROPS).exists()


@pytest.mark.parametrize("stop", [5, 7])
def test_resumed_looks_are_those_of_an_uninterrupted_run(
    tissue, micro, labelled, watched, tmp_path, stop
):
    settings = micro("train.watch_every=5", f'train.watch_data="{labelled}"')
    job = begin(tissue, tmp_path / "run", settings)
    count = iter(range(1, 100))
    with pytest.raises(errors.Interrupted):
        train.train(job, HERE, lambda: next(count) >= stop)
    with (job.run / folder.WATCH).open("a") as file:
        file.write('{"step": 11, "odcorr": 0.1}\n{"step": 12, "od')
    train.train(job, HERE, lambda: False)
    assert looks(job.run) == looks(watched)
    assert (job.run / folder.RESULT).read_bytes() == (watched / folder.RESULT).read_bytes()


def test_what_decides_no_weight_may_change_when_a_run_goes_on(tissue, micro, tmp_path):
    job = begin(tissue, tmp_path / "run", micro("train.watch_every=0"))
    changes = ("train.watch_every=6", 'train.on_collapse="stop"', "train.checkpoint_every=3")
    again = micro(*changes)
    folder.prepare(job.run, run.identity(tissue, again), again, overwrite=False)
    text = (job.run / folder.CONFIG).read_text()
    assert "watch_every = 6" in text and 'on_collapse = "stop"' in text
    (job.run / folder.CHECKPOINTS).mkdir()
    assert folder.inspect(job.run, run.identity(tissue, again), overwrite=False) is None
    with pytest.raises(errors.OutputClash, match="train.seed"):
        folder.inspect(job.run, run.identity(tissue, micro("train.seed=8")), overwrite=False)


def test_a_look_that_fails_is_told_and_ends_nothing(tissue, micro, tmp_path, caplog):
    job = begin(tissue, tmp_path / "run", micro("train.watch_every=6"))
    (job.run / folder.PATCHES).unlink()
    with caplog.at_level(logging.WARNING):
        train.train(job, HERE, lambda: False)
    assert (job.run / folder.RESULT).exists() and looks(job.run) == []
    assert len([r for r in caplog.records if "could not be looked at" in r.message]) == 3


def test_pixels_are_read_once_and_only_as_many_are_kept_as_allowed(
    tissue, micro, tmp_path, monkeypatch
):
    job = begin(tissue, tmp_path / "run", micro())
    data = source.patches(job.run / folder.PATCHES)
    read = []
    counted = watch.dataclasses.replace(data, read=lambda row: read.append(row) or data.read(row))
    monkeypatch.setattr(watch, "KEPT_BYTES", 4 * 32 * 32 * 3)
    images = watch._Set(counted)
    backbone = networks.pair(job.settings)[1].backbone
    looker = watch.Watch(job, HERE, 0, None)
    method = type("Method", (), {"teacher": type("Teacher", (), {"backbone": backbone})})
    first, _ = images.vectors(looker._encoder(method))
    again, usable = images.vectors(looker._encoder(method))
    assert len(read) == 6 + 2 and usable.all() and np.array_equal(first, again)
    assert backbone.training


def test_the_sheet_of_views_shows_what_the_networks_get(tmp_path):
    """Two patches: two global views of 16 px and one local of 8, each of one grey."""
    greys = torch.tensor([0.1, 0.3, 0.5, 0.7])
    views = [
        (greys.view(4, 1, 1, 1).expand(4, 3, 16, 16) - 0.5) / 0.5,
        (torch.tensor([0.2, 0.9]).view(2, 1, 1, 1).expand(2, 3, 8, 8) - 0.5) / 0.5,
    ]
    sheets.crops(views, tmp_path / "crops.jpg")
    image = np.asarray(Image.open(tmp_path / "crops.jpg").convert("L")).astype(int)
    assert image.shape == (36, 48)
    got = [image[8, 8], image[8, 28], image[4, 44], image[28, 8], image[28, 28], image[24, 44]]
    assert np.allclose(got, [26, 128, 51, 76, 178, 230], atol=4)


def test_neighbours_come_in_order(tmp_path):
    """Directions 0, 90, 10 and 80 degrees; patch i is grey 60 i."""
    angles = np.radians([0, 90, 10, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pixels = [np.full((32, 32, 3), 60 * i, np.uint8) for i in range(4)]
    rows = np.arange(4)
    sheets.neighbours(vectors, rows, lambda row: pixels[row], tmp_path / "n.jpg")
    image = np.asarray(Image.open(tmp_path / "n.jpg").convert("L")).astype(int)
    centres = image[48::100, 48::100] / 60
    assert np.allclose(centres, [[0, 2, 3, 1], [1, 3, 2, 0], [2, 0, 3, 1], [3, 1, 2, 0]], atol=0.1)


def test_labelled_images_are_cut_to_the_limit_always_the_same(labelled):
    one = quick.open_labelled(str(labelled), 3)
    two = quick.open_labelled(str(labelled), 3)
    assert one.data.rows.equals(two.data.rows) and one.trains.tolist() == [True] * 3 + [False] * 3
    expected = [int("/red/" in name) for name in one.data.rows["id"]]
    assert one.classes.tolist() == expected
    path = labelled / one.data.rows["id"][1]
    assert np.array_equal(one.data.read(1), np.asarray(Image.open(path)))


def test_quick_scores_by_hand(monkeypatch):
    """Six directions to train on, three votes; one of class 1's two test rows is misplaced."""
    monkeypatch.setattr(quick, "NEIGHBOURS", 3)
    train_classes, tests = [0, 0, 0, 1, 1, 1], [0, 1, 1]
    vectors = [[1, 0], [1, 0.1], [1, -0.1], [0, 1], [0.1, 1], [-0.1, 1], [2, 0], [0, 3], [5, 0.2]]
    rows = pl.DataFrame({"id": [str(n) for n in range(9)]})
    data = source.Source(rows=rows, read=None, parent="", settings={}, what="images")
    trains = np.arange(9) < 6
    labelled = quick.Labelled(data, np.array(train_classes + tests), trains)
    found = quick.scores(np.array(vectors, np.float32), labelled, np.ones(9, bool))
    assert found == {"knn": 0.75, "linear": 0.75}  # recalls 1 and 1/2
    assert labelled.chance == 0.5
    without = np.arange(9) != 8
    assert quick.scores(np.array(vectors, np.float32), labelled, without)["linear"] == 1.0
    assert quick.scores(np.array(vectors, np.float32), labelled, ~trains) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\n1.png,a\n", "has no split"),
        ("path,split\n1.png,train\n", "has no label"),
        ("path,label,split\n1.png,a,train\n2.png,b,train\n", "needs a split train, and test"),
        ("path,label,split\n1.png,a,train\n2.png,a,test\n", "one class only"),
        ("path,label,split\n1.png,a,train\n2.png,b,test\n", "train lacks b"),
    ],
)
def test_a_labelled_set_that_cannot_be_used_is_refused_at_once(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(errors.UsageError, match=message):
        quick.open_labelled(str(tmp_path / "t.csv"), 10)


def test_labels_without_a_time_to_look_are_refused(micro):
    with pytest.raises(errors.UsageError, match="never to look") as caught:
        micro("train.watch_every=0", "train.watch_data=x")
    assert caught.value.hint == "--set train.watch_every=1000"


def test_tensorboard_gets_the_curves(tissue, micro, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = micro("train.watch_every=6", "train.tensorboard=true")
    path = whole(tissue, tmp_path / "run", settings)
    events = reading.EventAccumulator(str(path / folder.TENSORBOARD)).Reload()
    assert [one.step for one in events.Scalars("train/loss")] == list(range(1, 13))
    assert [one.step for one in events.Scalars("watch/odcorr")] == [0, 6, 12]
    logged = [json.loads(line)["loss"] for line in (path / folder.METRICS).open()]
    assert [one.value for one in events.Scalars("train/loss")] == pytest.approx(logged)


def test_tensorboard_that_is_absent_is_named_before_anything_starts(micro, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(errors.MissingExtra, match="needs the package tensorboard") as caught:
        watch.check(micro("train.tensorboard=true"))
    assert caught.value.hint == "pip install 'pathfm[tensorboard]'"
