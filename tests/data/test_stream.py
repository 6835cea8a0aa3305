"""Batches of a stream: the pixels of their draws, whoever reads them."""

from pathlib import Path

import numpy as np
import pytest
import servers
import torch
from streams import CONFIG, joined, read, same

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw, index, mask, sample, stream, windows
from pathfm_cli.wsi import pyramid


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


def test_the_random_state_of_the_process_stays(demo_tissue: Path) -> None:
    before = torch.random.get_rng_state()
    read(demo_tissue, workers=1)
    read(demo_tissue)
    assert torch.equal(torch.random.get_rng_state(), before)
