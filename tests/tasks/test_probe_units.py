"""What intervals resample on a fixed split: images, patients or slides; what logreg chooses."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import features, labelled, probe, protocols

ROWS = 240


def embeddings(
    folder: Path, name: str, val: bool = True, **columns: list[str]
) -> features.Features:
    """Two classes; the test images of one slide are all easy or all hard, so they are no news."""
    rng = np.random.default_rng(0)
    numbers = np.arange(ROWS) % 2
    hard = (np.arange(ROWS) // 12) % 2
    z = (2 * numbers - 1)[:, None] * np.where(hard, -0.2, 2.0)[:, None]
    z = (z + rng.standard_normal((ROWS, 4))).astype(np.float32)
    splits = ["train"] * 60 + ["val" if val else "train"] * 60 + ["test"] * 120
    frame = pl.DataFrame(
        {
            "id": [f"i{n}" for n in range(ROWS)],
            "embedding": pl.Series(z, dtype=pl.Array(pl.Float32, 4)),
            "label": [("a", "b")[n] for n in numbers],
            "split": splits,
            **columns,
        }
    )
    frame.write_parquet(folder / name)
    return features.open_features(folder / name)


def interval(source: features.Features, by: str) -> tuple[float, float]:
    config = protocols.Config(method="simpleshot", by=by)
    found = probe.probe(source, None, config)
    return tuple(found.record["metrics"][f"balanced_accuracy_{end}"] for end in ("low", "high"))


def test_a_fixed_split_is_resampled_by_slide(tmp_path: Path) -> None:
    slides = [f"s{n // 12}" for n in range(ROWS)]
    both = embeddings(tmp_path, "both.parquet", slide=slides, group=["p"] * 120 + ["q"] * 120)
    groups = embeddings(tmp_path, "groups.parquet", group=slides)
    by_slide = interval(both, "slide")
    assert by_slide == interval(groups, "group"), "ten slides of twelve images, by any name"
    images = interval(embeddings(tmp_path, "images.parquet"), "group")
    assert by_slide[1] - by_slide[0] > 1.5 * (images[1] - images[0])
    one_patient = interval(both, "group")
    assert one_patient[0] == one_patient[1], "all test images are of one patient"


def test_the_choice_is_part_of_the_result(tmp_path: Path) -> None:
    source = embeddings(tmp_path, "e.parquet", slide=[f"s{n // 12}" for n in range(ROWS)])
    config = protocols.Config(method="knn", by="slide")
    made = probe.probe(source, tmp_path / "out", config)
    assert "in 95% of 1000 resamples of its slides" in " ".join(made.lines)
    with pytest.raises(errors.OutputClash, match=r"by=slide \(now None\)"):
        probe.probe(source, tmp_path / "out", protocols.Config(method="knn"))


def test_an_unknown_column_is_refused_before_training(tmp_path: Path) -> None:
    source = embeddings(tmp_path, "e.parquet")
    with pytest.raises(errors.UsageError, match="no column 'slide'") as caught:
        probe.probe(source, None, protocols.Config(by="slide"))
    assert caught.value.hint == "--by id"


def test_logreg_says_that_its_c_was_chosen_on_what_is_reported(tmp_path: Path) -> None:
    source = embeddings(tmp_path, "e.parquet", val=False)
    wanted = "no split val: C is chosen on test, the split that is reported, so the score is"
    found = probe.probe(source, None, protocols.Config(method="logreg"))
    assert found.notes[0].startswith(wanted)
    roles = protocols.Config().splits()
    assert "the best state of each run is chosen" in labelled.prepare(source, roles).notes[0]


def test_a_rerun_says_again_what_the_first_said(tmp_path: Path) -> None:
    source = embeddings(tmp_path, "e.parquet", val=False)
    config = protocols.Config(method="logreg")
    first = probe.probe(source, tmp_path / "out", config)
    again = probe.probe(source, tmp_path / "out", config)
    assert first.notes and again.notes == (*first.notes, "up to date")
    (tmp_path / "out" / "scores.json").write_text("{}")
    assert probe.probe(source, tmp_path / "out", config).notes == ("up to date",)
