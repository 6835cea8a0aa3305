"""Training from bad networks: no patch is lost or wrong, and what cannot be read is told."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import servers
import torch

from pathfm_cli import errors
from pathfm_cli.data import draw, index, mask, skips, stream
from pathfm_cli.wsi import cache, remote, retry

CONFIG = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)
SLIDES = ("CMU-1-Small-Region.svs", "BS3_liver_HE_10x.svs", "metaplasia_stomach_HE_20x.svs")
SHARES = ("--fail", "0.05", "--reset", "0.01", "--cut", "0.01", "--stall", "0.001")
SHARES += ("--stall-s", "0.5")
WEB, S3 = 260, 53
"""Steps of 64 patches from each server, 20,032 in all; each range costs moto the whole object."""


@pytest.fixture
def slides(slides_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in SLIDES:
        (folder / name).symlink_to(slides_folder / name)
    return folder


def tissue_of(arguments: list[str], folder: Path) -> Path:
    index.index(arguments, folder / "s.parquet")
    mask.mask(folder / "s.parquet", folder / "t.parquet")
    return folder / "t.parquet"


def batches(tissue: Path, steps: int, **options) -> Iterator[stream.Batch]:
    plain = {"batch_size": 64, "first_step": 0, "steps": steps}
    return stream.batches(tissue, CONFIG, 5, **(plain | options))


def equal(found: Iterable[stream.Batch], expected: Iterable[stream.Batch]) -> skips.Ledger:
    """Whether two streams hold the same patches; what was replaced."""
    ledger = skips.Ledger(0.0)
    for one, other in itertools.zip_longest(found, expected):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.pixels, other.pixels)
        ledger.add(len(one.indices), one.failed)
    return ledger


def test_the_stream_is_the_same_from_a_bad_server(slides: Path, tmp_path: Path) -> None:
    local = tissue_of([str(slides)], tmp_path / "local")
    # The fork server that makes the workers is there before anybody speaks of a cache.
    equal(batches(local, 1, workers=2), batches(local, 1))
    shares = ("--fail", ".05", "--reset", ".02", "--cut", ".02")
    with servers.web(slides, *shares) as address:
        web = tissue_of([f"{address}/{name}" for name in SLIDES], tmp_path / "web")
        cache.use(tmp_path / "cache", 1)
        try:
            ledger = equal(batches(web, 4), batches(local, 4))
            cache.current().flush()
            before = servers.counts(address)
            equal(batches(web, 4, workers=2), batches(local, 4))
            after = servers.counts(address)
        finally:
            del os.environ[cache.FOLDER_VARIABLE], os.environ[cache.SIZE_VARIABLE]
    assert (ledger.patches, ledger.failed) == (256, 0)
    assert min(after[name] for name in ("fail", "reset", "cut")) > 0
    # The second time every tile came from the cache, in other processes.
    assert after["GET"] == before["GET"]


@pytest.mark.parametrize("fault", ["does not exist", "has changed since it was indexed"])
def test_a_slide_that_vanishes_or_changes_is_replaced_and_told(
    slides: Path, tmp_path: Path, fault: str
) -> None:
    with servers.web(slides) as address:
        tissue = tissue_of([f"{address}/{name}" for name in SLIDES], tmp_path / "web")
        body = (slides / SLIDES[0]).read_bytes()
        (slides / SLIDES[0]).unlink()
        if "changed" in fault:
            (slides / SLIDES[0]).write_bytes(body)
        found = list(batches(tissue, 2))
    told = [failure for batch in found for failure in batch.failed]
    assert {failure.slide for failure in told} == {SLIDES[0][:-4]}
    assert all(fault in failure.error for failure in told)
    assert {int(slide) for batch in found for slide in batch.slides} == {0, 2}
    ledger = skips.Ledger(0.01)
    with pytest.raises(errors.TooManyFailures, match="patches could not be read, more than 1.0%"):
        for batch in found:
            ledger.add(len(batch.indices), batch.failed)


def test_a_server_that_dies_ends_the_stream_with_a_sentence(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_S", 0.001)
    with servers.web(slides) as address:
        tissue = tissue_of([f"{address}/{name}" for name in SLIDES], tmp_path / "web")
    with pytest.raises(errors.SlideError, match="and its 8 replacements cannot be read"):
        list(batches(tissue, 1, batch_size=4))


@pytest.mark.slow(60)
def test_twenty_thousand_patches_none_lost_none_wrong(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("moto")
    monkeypatch.setattr(retry, "FIRST_S", 0.02)
    expected = list(batches(tissue_of([str(slides)], tmp_path / "local"), WEB))
    with servers.web(slides, *SHARES) as address:
        web = tissue_of([f"{address}/{name}" for name in SLIDES], tmp_path / "web")
        first = equal(batches(web, WEB), expected)
        told = [servers.counts(address)]
    for name, value in servers.KEYS.items():
        monkeypatch.setenv(name, value)
    with servers.s3() as moto, servers.web(moto, *SHARES) as address:
        bodies = {f"id/{name}": (slides / name).read_bytes() for name in SLIDES}
        servers.bucket(moto, "cohort", bodies)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        remote.client.cache_clear()
        bucket = tissue_of(["s3://cohort/id/"], tmp_path / "s3")
        second = equal(batches(bucket, S3), expected[:S3])
        told.append(servers.counts(address))
    remote.client.cache_clear()
    lines = [
        f"{name}: {ledger.patches} patches, {ledger.failed} replaced, {counts}"
        for name, ledger, counts in zip(("http", "s3"), (first, second), told, strict=True)
    ]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines, f"this process: {dict(remote.counts)}", ""]))
    assert first.patches + second.patches >= 20_000
    for counts in told:
        assert min(counts[name] for name in ("fail", "reset", "cut", "stall")) > 0
