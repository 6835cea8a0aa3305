"""How well tissue is found: the shipped U-Net, `--method otsu`, and a saturation threshold.

Scores (a) composites with known truth, cut from slides that the U-Net never saw, one difficulty at
a time, and (b) hand-checked outlines of those slides; then times `pathfm mask` on real slides, and
exact overlap (`benchmarks/overlap.py`). The saturation threshold is what CLAM-style tools do. All
masks, the true ones too, are cleaned alike, as `pathfm mask` cleans them.

python benchmarks/tissue.py [--quick] [--json] [--weights FILE] [--seed N]

Missed area is a share of the true tissue, false area a share of the true background; boundary Dice
compares bands of 24 um inside the outlines. Areas are added over images before shares are taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mask_speed
import numpy as np
import overlap
from numpy import typing as npt
from PIL import Image
from scipy import ndimage

from pathfm_cli.data import index, otsu, polygons
from pathfm_cli.model import unet
from pathfm_cli.tissue import compose, pairs, scores

ROOT = Path(__file__).parents[1]
SLIDES = ROOT.parent / "shared" / "data" / "slides"
OUTLINES = ROOT / "tests" / "data" / "outlines"
HELD_OUT = (
    "BS21_stomach_HE_10x_rgbjpeg",
    "BS25_duodenumNET_HE_10x",
    "BS27_duodenum_HE_40x_ycc422",
    "TCGA-CR-7395-01A-01-TS1",
    "crohn_colon_HE_10x",
    "lipoma_colon_HE_nompp",
)
"""Slides whose tissue the shipped weights never saw; `docs/models/tissue-unet.md`."""
OVERRIDES = {"lipoma_colon_HE_nompp": 1.0112, "TCGA-CR-7395-01A-01-TS1": 0.5}
"""Micrometres per pixel of the slides that do not say theirs."""
MPP = 8.0
SEED = 2024
SCENE_PX = 320
SCENES = 24
"""Composites of each difficulty; `--quick` makes 4."""
ARTEFACTS = ("pen", "edges", "dust", "blank")
"""Difficulties in which false area counts."""
FAINT = ("pale", "fatty")
"""Difficulties in which missed area counts."""

Mask = npt.NDArray[np.bool_]
Images = Sequence[tuple[npt.NDArray[np.uint8], Mask]]
Finder = Callable[[npt.NDArray[np.uint8]], Mask]


def saturation_otsu(rgb: npt.NDArray[np.uint8]) -> Mask:
    """Saturation of HSV, 7 x 7 median, Otsu's threshold, 4 x 4 closing: what CLAM's tools do."""
    high, low = rgb.max(axis=2).astype(np.float32), rgb.min(axis=2).astype(np.float32)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    smooth = ndimage.median_filter(saturation, size=7)
    mask = smooth > otsu.otsu_threshold(smooth.ravel(), 1.0)
    return np.asarray(ndimage.binary_closing(np.pad(mask, 4), np.ones((4, 4)))[4:-4, 4:-4])


def finders(weights: str | None) -> dict[str, Finder]:
    """The three methods by name, each from (H, W, 3) uint8 at `MPP` to (H, W) bool."""
    network = unet.load(weights)

    def by_unet(rgb: npt.NDArray[np.uint8]) -> Mask:
        if network.mpp == MPP:
            return network.probability(rgb) > 0.5
        height, width = rgb.shape[:2]
        size = max(1, round(width * MPP / network.mpp)), max(1, round(height * MPP / network.mpp))
        small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.HAMMING))
        found = Image.fromarray(network.probability(small))
        return np.asarray(found.resize((width, height), Image.Resampling.BILINEAR)) > 0.5

    return {
        "unet": by_unet,
        "otsu": lambda rgb: otsu.foreground(rgb, MPP),
        "saturation": saturation_otsu,
    }


def cleaned(mask: Mask) -> Mask:
    """What `pathfm mask` keeps of a mask: small pieces and small holes go."""
    tissue = polygons.from_mask(mask, (1.0, 1.0), MPP, polygons.Cleaning())
    return pairs.raster(tissue, (1.0, 1.0), (mask.shape[1], mask.shape[0]))


def score(methods: Mapping[str, Finder], images: Images) -> dict[str, scores.Score]:
    """Areas of each method, added over the images."""
    truths = [cleaned(mask) for _, mask in images]
    return {
        name: scores.total(
            scores.compare(cleaned(find(rgb)), truth, MPP)
            for (rgb, _), truth in zip(images, truths, strict=True)
        )
        for name, find in methods.items()
    }


def slides(folder: str) -> Path:
    """Index all slides of the shared data, with their mpp."""
    out = Path(folder) / "slides.parquet"
    files = [str(file) for end in ("*.svs", "*.tif") for file in SLIDES.glob(end)]
    index.index(files, out, mpp_overrides=[f"{name}={mpp}" for name, mpp in OVERRIDES.items()])
    return out


def composites(held_out: Sequence[pairs.Pair], count: int, seed: int = SEED) -> dict[str, Images]:
    """Scenes of each difficulty, from tissue that the network never saw."""
    made = {}
    for number, (name, recipe) in enumerate(compose.CATEGORIES.items()):
        scenes = (
            compose.scene(held_out, recipe, seed + number, i, size_px=SCENE_PX, mpp=MPP)
            for i in range(count)
        )
        made[name] = [(scene.rgb, scene.mask) for scene in scenes]
    return made


def table(title: str, rows: Mapping[str, Mapping[str, scores.Score]]) -> list[str]:
    """Lines of text: one row an image set, four numbers a method."""
    methods = list(next(iter(rows.values())))
    lines = [title, f"{'':28}" + "".join(f"{name:^30}" for name in methods)]
    lines.append(f"{'':28}" + "   Dice  edge missed  false  " * len(methods))
    for name, found in rows.items():
        cells = (
            f"  {s.dice:.3f} {s.boundary_dice:.3f}  {s.missed_area:.3f}  {s.false_area:.3f}  "
            for s in found.values()
        )
        lines.append(f"{name:28}" + "".join(cells))
    return lines


def totals(rows: Mapping[str, Mapping[str, scores.Score]], only: Sequence[str] = ()) -> dict:
    """Areas of each method, added over rows."""
    picked = [row for name, row in rows.items() if not only or name in only]
    return {method: scores.total(row[method] for row in picked) for method in picked[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--weights", help="another network than the one in the package")
    parser.add_argument("--seed", type=int, default=SEED, help="of the composites")
    arguments = parser.parse_args()
    if not SLIDES.is_dir():
        sys.exit(f"{SLIDES} is absent: there are no slides to measure on")
    say = (
        (lambda *lines: print(*lines, sep="\n", file=sys.stderr))
        if arguments.json
        else (lambda *lines: print(*lines, sep="\n", flush=True))
    )
    with tempfile.TemporaryDirectory() as folder:
        indexed = slides(folder)
        held_out = list(pairs.of_slides(indexed, OUTLINES, MPP, only=HELD_OUT))
        methods = finders(arguments.weights)
        made = composites(held_out, 4 if arguments.quick else SCENES, arguments.seed)
        by_kind = {name: score(methods, images) for name, images in made.items()}
        say(*table("composites of held-out tissue", by_kind))
        by_slide = {pair.name: score(methods, [(pair.rgb, pair.mask)]) for pair in held_out}
        say(*table("hand-checked outlines of held-out slides", by_slide))
        result = summary(by_kind, by_slide)
        result |= mask_speed.measure(indexed, quick=arguments.quick)
    result |= overlap.measure(quick=arguments.quick)
    for name, value in result.items():
        say(f"{name:32} {value:.4g}")
    if arguments.json:
        print(json.dumps(result))


def summary(by_kind: Mapping, by_slide: Mapping) -> dict[str, float]:
    """The numbers that are tracked: composites of all kinds together, and the issue's two."""
    result = {}
    for method, areas in totals(by_kind).items():
        result[f"{method}_dice"] = areas.dice
        result[f"{method}_false_area"] = areas.false_area
        result[f"{method}_missed_area"] = areas.missed_area
    for method, areas in totals(by_kind, ARTEFACTS).items():
        result[f"{method}_false_area_artefacts"] = areas.false_area
    for method, areas in totals(by_kind, FAINT).items():
        result[f"{method}_missed_area_faint"] = areas.missed_area
    for method, areas in totals(by_slide).items():
        result[f"{method}_dice_outlines"] = areas.dice
    return result


if __name__ == "__main__":
    main()
