"""Which resolution the tissue U-Net should work at: one short training per mpp, scored alike.

python benchmarks/tissue_mpp.py [--steps 120] [--json]

Each network sees the same number of scenes, each about 2,050 um wide, of the slides that the
shipped weights learn from. All are scored at 8 um/px, on composites and hand-checked outlines of
held-out slides; `cpu_ms_per_cm2` is the network's processor time (one thread) for 1 cm2 of slide;
`limit_dice` and `limit_edge` are those of the true outlines drawn at that resolution.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import tissue
from PIL import Image

from pathfm_cli.model import unet
from pathfm_cli.tissue import compose, pairs, scores, train

SIZES_PX = {16.0: 128, 12.0: 176, 8.0: 256}
"""Side of a training scene for each mpp."""
SCENES = 96


def learn(indexed: Path, mpp: float, steps: int) -> Path:
    """Train one network on the slides that are not held out; returns its weights."""
    found = [
        pair
        for pair in pairs.of_slides(indexed, tissue.OUTLINES, mpp)
        if pair.name not in tissue.HELD_OUT
    ]
    config = train.TrainConfig(mpp=mpp, steps=steps, size_px=SIZES_PX[mpp])
    out = indexed.with_name(f"{mpp:g}.safetensors")
    train.train(found, out, config, device="cpu")
    return out


def limit(indexed: Path, held_out: list[pairs.Pair], mpp: float) -> dict[str, float]:
    """What a network without error could reach: the true outlines at `mpp`, seen at 8 um/px."""
    found = []
    for fine, coarse in zip(
        held_out, pairs.of_slides(indexed, tissue.OUTLINES, mpp, only=tissue.HELD_OUT), strict=True
    ):
        share = Image.fromarray(coarse.mask.astype(np.float32))
        size = fine.mask.shape[1], fine.mask.shape[0]
        mask = np.asarray(share.resize(size, Image.Resampling.BILINEAR)) > 0.5
        found.append(scores.compare(mask, fine.mask, tissue.MPP))
    areas = scores.total(found)
    return {"limit_dice": areas.dice, "limit_edge": areas.boundary_dice}


def cost_ms(network: unet.Segmenter) -> float:
    """Processor time of the network for 1 cm2 of slide."""
    side = round(10_000 / network.mpp)
    rgb = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    taken = []
    with unet.one_thread():
        for _ in range(3):
            start = time.process_time()
            network.probability(rgb)
            taken.append(time.process_time() - start)
    return 1000 * min(taken)


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        indexed = tissue.slides(folder)
        held_out = list(pairs.of_slides(indexed, tissue.OUTLINES, tissue.MPP, only=tissue.HELD_OUT))
        scenes = [
            compose.scene(held_out, compose.Recipe(), tissue.SEED, i, size_px=256, mpp=tissue.MPP)
            for i in range(SCENES)
        ]
        sets = {
            "composites": [(scene.rgb, scene.mask) for scene in scenes],
            "outlines": [(pair.rgb, pair.mask) for pair in held_out],
        }
        for mpp in SIZES_PX:
            weights = learn(indexed, mpp, arguments.steps)
            methods = {"unet": tissue.finders(str(weights))["unet"]}
            row = {"cpu_ms_per_cm2": cost_ms(unet.load(weights))} | limit(indexed, held_out, mpp)
            for name, images in sets.items():
                areas: scores.Score = tissue.score(methods, images)["unet"]
                row |= {f"{name}_dice": areas.dice, f"{name}_edge": areas.boundary_dice}
                row |= {f"{name}_missed": areas.missed_area, f"{name}_false": areas.false_area}
            result[f"{mpp:g}"] = row
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in row.items())
            if not arguments.json:
                print(f"mpp {mpp:g}  {numbers}", flush=True)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
