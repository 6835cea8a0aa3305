"""Patches that kill the process that reads them: found, replaced, told."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.data import draw, salvage, stream, workers

CONFIG = draw.SampleConfig(mpp=(0.5, 1.0), size_px=32)


class Deadly(stream.Loader):
    """Dies at the first draws of the given patches."""

    def __init__(self, plan, numbers):
        super().__init__(plan, threads=1)
        self.numbers = numbers

    def _pixels(self, patches):
        first = {self._opened.source.draw(number) for number in self.numbers}
        if first & set(patches):
            os._exit(9)
        return super()._pixels(patches)


def plan(tissue: Path, steps: int) -> stream.Plan:
    return stream.Plan(
        cohort_path=tissue,
        config=CONFIG,
        seed=9,
        batch_size=4,
        first_step=0,
        steps=steps,
        rank=0,
        world_size=1,
        distinct=0,
        patches_per_window=1,
        policy="finer",
        idct=True,
    )


def test_a_deadly_patch_is_replaced_by_its_next_draw(demo_tissue: Path) -> None:
    loader = Deadly(plan(demo_tissue, 2), {5, 6})
    batch = salvage.read(workers.context(), loader, 1)
    whole = stream.Loader(loader.plan, 1)
    good = whole.read(1)
    assert torch.equal(batch.pixels[[0, 3]], good.pixels[[0, 3]])
    source = whole._opened.source
    pixels, _ = whole._pixels([source.draw(5, 1), source.draw(6, 1)])
    assert np.array_equal(batch.pixels[1:3].numpy(), pixels)
    told = [(one.index, one.slide, one.error) for one in batch.failed]
    slide = "CMU-1-Small-Region"
    assert told == [(n, slide, f"the process that read patch {n} died") for n in (5, 6)]


def test_workers_go_on_after_a_deadly_patch(demo_tissue: Path) -> None:
    loader = Deadly(plan(demo_tissue, 3), {5})
    batches = list(workers.read(loader, 1, 1, pin=False))
    assert [batch.indices.tolist()[0] for batch in batches] == [0, 4, 8]
    assert [len(batch.failed) for batch in batches] == [0, 1, 0]


def test_readers_that_always_die_end_with_a_sentence(
    demo_tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Deadly(plan(demo_tissue, 2), set(range(8)))
    monkeypatch.setattr(salvage, "MAX_DEADLY", 2)
    with pytest.raises(errors.PathfmError, match="read patches 0 and on die"):
        salvage.read(workers.context(), loader, 0)
    monkeypatch.setattr(workers, "MAX_DEATHS", 0)
    with pytest.raises(errors.PathfmError, match="1 processes that read patches died, .* patch 0"):
        list(itertools.islice(workers.read(loader, 1, 1, pin=False), 1))
