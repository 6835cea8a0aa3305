"""What reading, transforming and writing add to an encoder's pure forward pass.

python benchmarks/embed.py [--quick] [--json] [--images TABLE] [--arch NAME] [--device D]

The peer is plain timm on batches that are already normalised floats on the device. `embed` starts
from image files and ends with the finished artifact. Both use the same weights, batch size and
precision and take turns; each counts with its fastest round. `vs_forward` is the peer's wall time
over ours (1: everything else is free), `vs_forward_cpu` the same in processor time, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pathfm_cli.model import device as devices
from pathfm_cli.model import names, weights
from pathfm_cli.tasks import embed, images, source

TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "patches" / "organ4" / "labels.csv"


def first(data: source.Source, count: int) -> source.Source:
    """The first `count` images of a source."""
    return source.Source(
        rows=data.rows.head(count),
        read=data.read,
        parent=data.parent,
        settings=data.settings,
        what=data.what,
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def forward(encoder: weights.Encoder, batches: list[torch.Tensor]) -> None:
    """The pure forward pass; results are fetched at the end, so that a GPU never waits."""
    with torch.inference_mode(), devices.autocast(encoder.device, encoder.precision):
        torch.cat([encoder.module(batch).float() for batch in batches]).cpu()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=Path, default=TABLE)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    data = images.open_images(options.images)
    data = first(data, 192 if options.quick else data.rows.height)
    encoder = weights.load(f"{names.FRESH}{options.arch}", device=options.device)
    size = embed.fitting_batch(encoder)
    side = encoder.image_size_px
    batches = [
        torch.randn(len(range(at, min(at + size, data.rows.height))), 3, side, side).to(
            encoder.device
        )
        for at in range(0, data.rows.height, size)
    ]
    forward(encoder, batches[:1])
    ours, peer = [], []
    for _ in range(2 if options.quick else 4):
        peer.append(timed(lambda: forward(encoder, batches)))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "e.parquet"
            reading = embed.Reading(batch_size=size)
            ours.append(timed(lambda o=out, r=reading: embed.embed(data, encoder, o, r)))
    best_ours, best_peer = (tuple(map(min, zip(*runs, strict=True))) for runs in (ours, peer))
    result = {
        "vs_forward": round(best_peer[0] / best_ours[0], 3),
        "vs_forward_cpu": round(best_peer[1] / best_ours[1], 3),
        "images_per_s": round(data.rows.height / best_ours[0], 1),
        "forward_images_per_s": round(data.rows.height / best_peer[0], 1),
        "images": data.rows.height,
        "batch_size": size,
        "device": str(encoder.device),
        "precision": encoder.precision,
    }
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:22}{value}")


if __name__ == "__main__":
    main()
