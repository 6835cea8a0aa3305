import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import servers
import tifffile
import torch
from tissues import MakeTissue

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw, finders, index, mask, sample, stream, windows
from pathfm_cli.wsi import pyramid

CONFIG = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)


def read(path: Path, **options) -> list[stream.Batch]:
    plain = {"batch_size": 4, "first_step": 0, "steps": 3}
    return list(stream.batches(path, CONFIG, 9, **(plain | options)))


def joined(batches: list[stream.Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def same(left: list[stream.Batch], right: list[stream.Batch]) -> bool:
    names = ("indices", "patches", "pixels", "mpp", "slides")
    return len(left) == len(right) and all(
        torch.equal(joined(left, name), joined(right, name)) for name in names
    )


def test_a_batch_holds_the_pixels_of_its_draws(demo_tissue: Path) -> None:
    (batch,) = read(demo_tissue, first_step=5, steps=1)
    assert batch.indices.tolist() == batch.patches.tolist() == [20, 21, 22, 23]
    assert batch.pixels.shape == (4, 64, 64, 3) and batch.pixels.dtype == torch.uint8
    assert (batch.indices.dtype, batch.mpp.dtype) == (torch.int64, torch.float32)
    assert batch.slides.tolist() == [0, 0, 0, 0] and batch.failed == ()
    opened = cohort.open_cohort(demo_tissue)
    sampler = draw.Sampler(opened.table, CONFIG, 9)
    for row, number in enumerate(range(20, 24)):
        patch = sampler.draw(number)
        pixels = opened.reader.read_patch(
            opened.slides[0], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
        )
        assert np.array_equal(batch.pixels[row].numpy(), pixels)
        assert batch.mpp[row] == patch.mpp


def test_workers_change_nothing(demo_tissue: Path) -> None:
    alone = read(demo_tissue, steps=5, first_step=2)
    for workers in (1, 2):
        assert same(alone, read(demo_tissue, steps=5, first_step=2, workers=workers))


def test_ranks_share_what_one_rank_would_see(demo_tissue: Path) -> None:
    whole = read(demo_tissue, batch_size=6, steps=2, first_step=1)
    ranks = [
        read(demo_tissue, batch_size=3, steps=2, first_step=1, rank=rank, world_size=2)
        for rank in range(2)
    ]
    shuffled = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert joined(shuffled, "indices").tolist() == list(range(6, 18))
    names = ("indices", "pixels", "mpp")
    assert all(torch.equal(joined(whole, name), joined(shuffled, name)) for name in names)


def test_resuming_sees_what_an_unbroken_run_sees(demo_tissue: Path) -> None:
    whole = read(demo_tissue, steps=4)
    assert same(whole[2:], read(demo_tissue, first_step=2, steps=2))
    assert read(demo_tissue, steps=0) == [] == read(demo_tissue, steps=0, workers=2)


def test_patches_from_windows_are_as_pure(demo_tissue: Path, tmp_path: Path) -> None:
    options = {"patches_per_window": 4, "batch_size": 8, "steps": 2}
    batches = read(demo_tissue, **options)
    assert same(batches, read(demo_tissue, **options, workers=2))
    opened = cohort.open_cohort(demo_tissue)
    source = windows.Windows(draw.Sampler(opened.table, CONFIG, 9), 4)
    for number in (0, 5, 15):
        patch = source.draw(number)
        pixels = opened.reader.read_patch(
            opened.slides[0], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
        )
        assert np.array_equal(joined(batches, "pixels")[number].numpy(), pixels)
    with pytest.raises(errors.UsageError, match="patches_per_window is 0"):
        read(demo_tissue, patches_per_window=0)
    patches = tmp_path / "p.parquet"
    sample.sample(demo_tissue, patches, CONFIG, sample.Random(n=7, seed=9))
    with pytest.raises(errors.UsageError, match="fixed set"):
        read(patches, patches_per_window=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_level_and_scaling_are_as_asked(demo_tissue: Path, workers: int) -> None:
    config = draw.SampleConfig(mpp=(0.998,), size_px=64)
    (slide,) = cohort.open_cohort(demo_tissue).slides
    assert config.mpp[0] == pytest.approx(2 * slide.mpp)
    seen = []
    for options in ({}, {"idct": False}):
        options |= {"batch_size": 16, "first_step": 0, "steps": 1, "workers": workers}
        (batch,) = stream.batches(demo_tissue, config, 9, policy="closest", **options)
        seen.append(batch.pixels.numpy())
    opened = cohort.open_cohort(demo_tissue, policy="closest", idct=False)
    sampler = draw.Sampler(opened.table, config, 9)
    for number, pixels in enumerate(seen[1]):
        patch = sampler.draw(number)
        place = (patch.x_px0, patch.y_px0, patch.mpp, patch.size_px)
        np.testing.assert_array_equal(pixels, opened.reader.read_patch(slide, *place))
    # Some patches lie at even pixels, where tiles may be decoded at half size.
    assert not np.array_equal(seen[0], seen[1])


def test_workers_ranks_and_stores_see_the_same(slides_folder: Path, tmp_path: Path) -> None:
    """The same (seed, index) gives the same pixels, whoever reads them and from where."""
    names = ("CMU-1-Small-Region.svs", "BS3_liver_HE_10x.svs", "metaplasia_stomach_HE_20x.svs")
    options = {"batch_size": 32, "steps": 2}
    with servers.web(slides_folder) as address:
        seen = {}
        for kind, root in (("local", str(slides_folder)), ("remote", address)):
            (tmp_path / kind).mkdir()
            slides, tissue = tmp_path / kind / "s.parquet", tmp_path / kind / "t.parquet"
            index.index([f"{root}/{name}" for name in names], slides)
            mask.mask(slides, tissue)
            seen[kind] = read(tissue, **options)
        many = read(tissue, **options, workers=8)
        ranks = [
            read(tissue, batch_size=8, steps=2, rank=rank, world_size=4, workers=rank % 2)
            for rank in range(4)
        ]
    shared = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    alone = seen["local"]
    assert len(set(joined(alone, "slides").tolist())) == 3
    assert joined(alone, "pixels").float().std() > 20
    assert same(alone, seen["remote"]) and same(alone, many)
    for name in ("indices", "patches", "pixels", "mpp", "slides"):
        assert torch.equal(joined(alone, name), joined(shared, name))


def test_pinned_batches_keep_their_values(
    demo_tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self.clone()
    )
    assert same(read(demo_tissue, pin=True), read(demo_tissue))
    assert pinned.count((4, 64, 64, 3)) == 3 and len(pinned) == 15


def test_held_pixels_are_read_once_and_are_the_same(demo_tissue: Path, tmp_path: Path, monkeypatch):
    plain = read(demo_tissue, distinct=5)
    asked: list[int] = []
    original = pyramid.Reader.read_patches

    def counting(self, requests, pool):
        asked.append(len(requests))
        return original(self, requests, pool)

    monkeypatch.setattr(pyramid.Reader, "read_patches", counting)
    first = read(demo_tissue, distinct=5, pixels=tmp_path)
    assert sum(asked) == 5, "twelve patches, five distinct ones"
    again = read(demo_tissue, distinct=5, pixels=tmp_path, first_step=0)
    assert sum(asked) == 5 and same(plain, first) and same(plain, again)
    read(demo_tissue, distinct=6, pixels=tmp_path)
    assert sum(asked) == 6, "more distinct patches begin with the same ones"
    list(
        stream.batches(
            demo_tissue, CONFIG, 8, batch_size=4, first_step=0, steps=1, distinct=4, pixels=tmp_path
        )
    )
    assert sum(asked) == 10, "another seed draws others"
    with pytest.raises(errors.UsageError, match="endless stream has no pixels to keep"):
        read(demo_tissue, pixels=tmp_path)


def test_distinct_patches_come_round_again_under_new_indices(demo_tissue: Path) -> None:
    batches = read(demo_tissue, distinct=5)
    assert joined(batches, "indices").tolist() == list(range(12))
    assert joined(batches, "patches").tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    pixels = joined(batches, "pixels")
    assert torch.equal(pixels[:5], pixels[5:10])


def test_a_fixed_set_is_read_in_turn(demo_tissue: Path, tmp_path: Path) -> None:
    patches = tmp_path / "p.parquet"
    sample.sample(demo_tissue, patches, CONFIG, sample.Random(n=7, seed=9))
    batches = list(stream.batches(patches, None, 0, batch_size=4, first_step=0, steps=3))
    assert joined(batches, "patches").tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    drawn = joined(read(demo_tissue), "pixels")
    assert torch.equal(joined(batches, "pixels")[:7], drawn[:7])
    few = list(stream.batches(patches, None, 0, batch_size=4, first_step=0, steps=1, distinct=3))
    assert few[0].patches.tolist() == [0, 1, 2, 0]


def test_tissue_needs_settings_and_says_so_before_it_reads(demo_tissue: Path) -> None:
    with pytest.raises(errors.UsageError, match="needs to be told how to draw"):
        stream.batches(demo_tissue, None, 0, batch_size=1, first_step=0, steps=1)
    fine = draw.SampleConfig(mpp=(0.1,))
    with pytest.raises(errors.UsageError, match="too coarse"):
        stream.batches(demo_tissue, fine, 0, batch_size=1, first_step=0, steps=1, workers=2)
    with pytest.raises(errors.InputError, match="does not exist"):
        read(Path("nowhere.parquet"))


@pytest.fixture
def half_corrupt(tmp_path: Path) -> Path:
    """Two slides of stained noise; all tiles of the second become garbage after mask."""
    random = np.random.default_rng(0)
    for name in ("good", "bad"):
        pixels = np.clip(random.normal((200, 120, 170), 15, (512, 512, 3)), 0, 255)
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            pixels.astype(np.uint8),
            photometric="rgb",
            tile=(128, 128),
            compression="deflate",
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
    index.index([str(tmp_path / "good.tif"), str(tmp_path / "bad.tif")], tmp_path / "s.parquet")
    mask.mask(tmp_path / "s.parquet", tmp_path / "t.parquet", finders.Otsu())
    spoil(tmp_path / "bad.tif")
    return tmp_path / "t.parquet"


def spoil(path: Path) -> None:
    """Overwrite every tile, and keep size and time of the file."""
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    before = path.stat()
    with path.open("rb+") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\0" * count)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_unreadable_patch_is_replaced_by_the_next_draw_and_told(half_corrupt: Path) -> None:
    opened = cohort.open_cohort(half_corrupt)
    names = [slide.slide for slide in opened.slides]
    sampler = draw.Sampler(opened.table, CONFIG, 9)
    batches = read(half_corrupt)
    assert same(batches, read(half_corrupt, workers=2))
    told = [failure for batch in batches for failure in batch.failed]
    expected = []
    for number in range(12):
        attempt = 0
        while names[sampler.draw(number, attempt).slide] == "bad":
            expected.append((number, "bad"))
            attempt += 1
        patch = sampler.draw(number, attempt)
        pixels = opened.reader.read_patch(
            opened.slides[patch.slide], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
        )
        assert np.array_equal(joined(batches, "pixels")[number].numpy(), pixels)
    assert [(failure.index, failure.slide) for failure in told] == expected and expected
    assert all("corrupt" in failure.error for failure in told)
    assert {names[slide] for slide in joined(batches, "slides").tolist()} == {"good"}


@pytest.mark.parametrize("workers", [0, 1])
def test_when_nothing_can_be_read_the_stream_ends_with_a_sentence(
    half_corrupt: Path, workers: int
) -> None:
    spoil(half_corrupt.with_name("good.tif"))
    with pytest.raises(errors.SlideError, match="and its 8 replacements cannot be read") as told:
        read(half_corrupt, workers=workers)
    assert "Traceback" not in str(told.value)


def test_the_random_state_of_the_process_stays(demo_tissue: Path) -> None:
    before = torch.random.get_rng_state()
    read(demo_tissue, workers=1)
    read(demo_tissue)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_travels_to_workers_is_small(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(*((f"s{n}", ring, 0.5, 1000) for n in range(100)))
    plan = stream.Plan(
        cohort_path=table.path,
        config=CONFIG,
        seed=0,
        batch_size=1,
        first_step=0,
        steps=1,
        rank=0,
        world_size=1,
        distinct=0,
        patches_per_window=1,
        policy="finer",
        idct=True,
    )
    assert len(pickle.dumps(stream.Loader(plan, 2))) < 2000


def readers(process: int) -> set[int]:
    """Grandchildren: workers are children of the fork server, which is a child of the process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    return {pid for pid, parent in parents.items() if parents.get(parent) == process}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: set[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, processes))


ENDLESS = """
import sys
from pathfm_cli.data import draw, stream
def main():
    config = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)
    options = dict(batch_size=4, first_step=0, steps=10**6, workers=2)
    batches = stream.batches(sys.argv[1], config, 9, **options)
    for batch in batches:
        print(int(batch.indices[0]), flush=True)
        sys.stdin.readline()
if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_ignore_signals_and_end_with_a_killed_parent(
    demo_tissue: Path, tmp_path: Path
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen(
        [sys.executable, str(script), str(demo_tissue)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "0\n"
            workers = readers(process.pid)
            assert len(workers) == 2
            for worker in workers:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.kill(worker, number)
            for start in (4, 8, 12, 16, 20, 24):
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{start}\n"
            assert all(map(alive, workers))
        finally:
            process.kill()
    assert gone(workers, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_dropped_stream_leaves_no_worker(demo_tissue: Path) -> None:
    before = readers(os.getpid())
    batches = stream.batches(
        demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=10**6, workers=2
    )
    next(batches)
    workers = readers(os.getpid()) - before
    assert len(workers) == 2
    del batches
    assert gone(workers, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_killed_worker_is_replaced_and_no_batch_is_lost(
    demo_tissue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = readers(os.getpid())
    batches = stream.batches(
        demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=20, workers=1
    )
    found = [next(batches)]
    (worker,) = readers(os.getpid()) - before
    os.kill(worker, signal.SIGKILL)
    found += batches
    assert same(found, read(demo_tissue, steps=20))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("a process that reads patches died (") and "on from patch " in told


def test_a_dropped_background_stream_stops_reading(demo_tissue: Path) -> None:
    batches = stream.batches(demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=10**6)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("mebibytes", "expected"), [(0, 1), (64, 1), (127, 1), (128, 2), (200, 3), (9999, 8)]
)
def test_how_many_batches_are_read_ahead(mebibytes: float, expected: int) -> None:
    # 4 readers, batches of 16 MiB.
    assert stream._ahead(int(mebibytes * 2**20), 16 << 20, 4) == expected


def test_a_stream_reads_only_as_far_ahead_as_it_says(
    demo_tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    read_one = stream.Loader.read

    def counting(self, number):
        numbers.append(number)
        return read_one(self, number)

    monkeypatch.setattr(stream.Loader, "read", counting)
    one_batch = 2 * 64 * 64 * 3
    batches = stream.batches(
        demo_tissue,
        CONFIG,
        9,
        batch_size=2,
        first_step=0,
        steps=100,
        prefetch_bytes=3 * one_batch - 1,
    )
    next(batches)
    time.sleep(0.5)
    assert numbers == [0, 1, 2]
    batches.close()
