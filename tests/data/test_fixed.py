"""Fixed patches: their order, their slides, and which of them take part."""

from pathlib import Path

import polars as pl
import pytest

from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw, fixed


def patches_table(slides: list[str], known: list[str]) -> artifacts.Table:
    n = len(slides)
    frame = pl.DataFrame(
        {
            "slide": pl.Series(slides, dtype=pl.String),
            "x_px0": [float(10 * i) for i in range(n)],
            "y_px0": [1.5] * n,
            "mpp": [0.5] * n,
            "size_px": [64] * n,
            "tissue_fraction": [0.75] * n,
        }
    )
    attached = pl.DataFrame(
        {
            "slide": known,
            "error": ["bad", *[None] * (len(known) - 1)],
            "stain": [f"stain-{k}" for k in known],
        }
    )
    header = artifacts.Header(kind="patches")
    return artifacts.Table(frame, header, Path("p.parquet"), {"slides": attached})


def test_fixed_patches_come_in_turn_and_know_their_slides() -> None:
    rows = fixed.Fixed(patches_table(["b", "c", "b"], ["a", "b", "c"]), seed=0)
    assert len(rows) == 3
    assert rows.draw(0) == draw.Patch(0, 0, 0.0, 1.5, 0.5, 64, 0.75)
    assert rows.draw(4) == draw.Patch(4, 1, 10.0, 1.5, 0.5, 64, 0.75)
    others = {rows.draw(0, attempt).x_px0 for attempt in range(1, 20)}
    assert others == {0.0, 10.0, 20.0}


@pytest.mark.parametrize("slides", [[], ["nowhere"], ["a"]])
def test_fixed_patches_need_rows_and_readable_slides(slides: list[str]) -> None:
    with pytest.raises(errors.InputError, match="p.parquet has no patches"):
        fixed.Fixed(patches_table(slides, ["a", "b"]), seed=0)


def test_a_condition_leaves_the_rows_of_its_slides() -> None:
    config = draw.SampleConfig(mpp=(0.5,), where="stain == 'stain-b'")
    rows = fixed.Fixed(patches_table(["b", "c", "b"], ["a", "b", "c"]), 0, config)
    assert [rows.draw(n).x_px0 for n in range(3)] == [0.0, 20.0, 0.0]
    assert {rows.draw(0, attempt).slide for attempt in range(1, 9)} == {0}


def test_slides_without_a_row_are_refused() -> None:
    config = draw.SampleConfig(mpp=(0.5,), where="slide == 'd'")
    with pytest.raises(errors.UsageError, match="No patch of p.parquet lies on a slide"):
        fixed.Fixed(patches_table(["b", "c"], ["a", "b", "c", "d"]), 0, config)
