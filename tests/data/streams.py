"""Short streams of small patches, and whether two are the same."""

from pathlib import Path

import torch

from pathfm_cli.data import draw, stream

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
