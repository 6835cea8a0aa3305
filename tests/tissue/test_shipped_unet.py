"""The network in the package, on real slides that it never saw."""

import dataclasses
from pathlib import Path

from pathfm_cli import artifacts
from pathfm_cli.data import index, otsu, outlines
from pathfm_cli.model import unet
from pathfm_cli.tissue import pairs, scores, train

OUTLINES = Path(__file__).parents[1] / "data" / "outlines"
HELD_OUT = {"lipoma_colon_HE_nompp": 1.0112, "TCGA-CR-7395-01A-01-TS1": 0.5}


def test_it_is_what_mask_train_makes_by_default() -> None:
    settings = artifacts.read_header(unet.SHIPPED, "segmenter").settings
    defaults = dataclasses.asdict(train.TrainConfig())
    assert {name: settings[name] for name in defaults} == defaults | {
        "widths": list(defaults["widths"])
    }
    assert len(settings["pairs"]) == 6 and not set(settings["pairs"]) & set(HELD_OUT)


def test_outlines_are_valid_and_not_empty() -> None:
    files = outlines.files(OUTLINES)
    assert len(files) == 12
    for file in files:
        tissue = outlines.read(file)
        assert tissue.is_valid and tissue.area > 0, file.name


def test_it_agrees_with_hand_checked_outlines_where_a_threshold_loses_fat(
    slides_folder: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides.parquet"
    overrides = [f"{name}={mpp}" for name, mpp in HELD_OUT.items()]
    files = [str(slides_folder / f"{name}.svs") for name in HELD_OUT]
    index.index(files, slides, mpp_overrides=overrides)
    network = unet.load(device="cpu")
    found = {pair.name: pair for pair in pairs.of_slides(slides, OUTLINES, network.mpp)}
    assert set(found) == set(HELD_OUT)
    for pair in found.values():
        mask = network.probability(pair.rgb) > 0.5
        assert scores.compare(mask, pair.mask, network.mpp).dice > 0.97
    fat = found["lipoma_colon_HE_nompp"]
    threshold = otsu.foreground(fat.rgb, network.mpp)
    assert scores.compare(threshold, fat.mask, network.mpp).missed_area > 0.3
    mask = network.probability(fat.rgb) > 0.5
    assert scores.compare(mask, fat.mask, network.mpp).missed_area < 0.03
