"""Chunks of `embed` on workers: what they are told and refuse, and what becomes of the deadly."""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from pathfm_cli import artifacts, cluster, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import apart, embed, images, source

MODEL = "random/test_vit"
HOW: dict[str, Any] = {"precision": "fp32", "image_size_px": 32}
DEADLY = 70


@pytest.fixture(scope="module")
def encoder() -> weights.Encoder:
    return weights.load(MODEL, **HOW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eighty images, each of another grey."""
    for number in range(80):
        Image.new("RGB", (32, 32), (number,) * 3).save(tmp_path / f"{number:02d}.png")
    return tmp_path


def job(
    folder: Path, encoder: weights.Encoder, opening: Callable[[Path], source.Source]
) -> tuple[apart.Job, source.Source]:
    """What workers are told, and the source as it is here."""
    data = images.open_images(folder)
    told = apart.job(
        functools.partial(opening, folder), MODEL, HOW, data, encoder, embed.Reading(workers=1)
    )
    return told, data


def test_workers_compute_in_the_precision_that_is_recorded(
    folder: Path, encoder: weights.Encoder
) -> None:
    data = images.open_images(folder)
    found = apart.job(lambda: data, MODEL, {"precision": "auto"}, data, encoder, embed.Reading())
    assert found.loading.keywords == {"precision": "fp32"}  # type: ignore[attr-defined]


def test_workers_find_an_encoder_that_is_named_from_another_folder(
    folder: Path, encoder: weights.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images.open_images(folder)
    monkeypatch.chdir(folder)
    (folder / "run").mkdir()

    def told(spec: str) -> str:
        found = apart.job(lambda: data, spec, HOW, data, encoder, embed.Reading())
        (spec,) = found.loading.args  # type: ignore[attr-defined]
        return spec

    assert told("run") == str(folder / "run")
    assert told(MODEL) == MODEL  # no file


@pytest.mark.parametrize("what", ["parent", "encoder"])
def test_a_worker_refuses_another_source_or_encoder(
    what: str, folder: Path, encoder: weights.Encoder
) -> None:
    told, _ = job(folder, encoder, images.open_images)
    told = dataclasses.replace(told, **{what: "images:0"})
    name = {"parent": "source", "encoder": "encoder"}[what]
    with pytest.raises(errors.InputError, match=rf"another {name} \(.*\) than .* \(images:0\)"):
        apart.Worker(told)(range(2))


class Fragile:
    """In the place of a cluster: whatever holds the deadly row is lost."""

    def __init__(self) -> None:
        self.tried: list[range] = []

    def map(
        self,
        work: apart.Worker,
        pieces: Iterable[range],
        lost: Callable[[range], Any],
    ) -> Iterator[Any]:
        for piece in pieces:
            self.tried.append(piece)
            yield lost(piece) if DEADLY in piece else work(piece)


def assert_one_is_lost(out: Path, plain: Path) -> None:
    left, right = (artifacts.read_table(path).frame for path in (out, plain))
    reasons: list[str | None] = [None] * 80
    reasons[DEADLY] = "the processes that embedded it died, one after another"
    assert left["error"].to_list() == reasons
    assert left["embedding"].is_null().to_list() == [n == DEADLY for n in range(80)]
    assert left["id"].to_list() == right["id"].to_list()
    good = [n for n in range(80) if n != DEADLY]
    vectors = [frame["embedding"][good].to_numpy() for frame in (left, right)]
    np.testing.assert_allclose(*vectors, atol=1e-5)  # batches of other sizes


def test_only_the_patch_that_kills_is_an_error(folder: Path, encoder: weights.Encoder) -> None:
    told, data = job(folder, encoder, images.open_images)
    workers = Fragile()
    compute = apart.spread(told, cast(cluster.Cluster, workers), data, encoder.shape)
    seen: list[tuple[int, int]] = []
    done = embed.embed(
        data,
        encoder,
        folder / "e.parquet",
        progress=lambda *now: seen.append(now),
        compute=compute,
    )
    assert workers.tried[:3] == [range(80), range(64), range(64, 80)]
    assert workers.tried[3:] == [range(n, n + 1) for n in range(64, 80)]
    assert seen == [(80, 80)]
    assert [name for name, _ in done.failures] == [f"{DEADLY}.png"]
    embed.embed(data, encoder, folder / "plain.parquet")
    assert_one_is_lost(folder / "e.parquet", folder / "plain.parquet")


def deadly(folder: Path) -> source.Source:
    data = images.open_images(folder)

    def read(row: int) -> source.Image:
        if row == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return data.read(row)

    return dataclasses.replace(data, read=read)


@pytest.mark.slow(30)
def test_a_patch_that_kills_real_workers_is_an_error(
    folder: Path, encoder: weights.Encoder
) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    told, data = job(folder, encoder, deadly)
    embed.embed(data, encoder, folder / "plain.parquet")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.spread("local:1") as workers,
    ):
        assert workers is not None
        compute = apart.spread(told, workers, data, encoder.shape)
        embed.embed(data, encoder, folder / "e.parquet", compute=compute)
    assert_one_is_lost(folder / "e.parquet", folder / "plain.parquet")
