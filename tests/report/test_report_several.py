"""Several inputs on one page: leaderboards, and accuracy against label-free measures."""

import re

import polars as pl
import pytest
from pages import a_probe, a_run, an_odcorr, page_of

from pathfm_cli import artifacts
from pathfm_cli.report import inputs, several
from pathfm_cli.tasks import scores


def test_several_make_a_leaderboard_and_figure_6(tmp_path):
    paths = [a_run(tmp_path / "one"), a_run(tmp_path / "two", name="other")]
    for number, (score, odcorr) in enumerate([(0.5, 0.9), (0.7, 0.4), (0.6, 0.6)]):
        parent = f"embeddings:{number}"
        paths += [a_probe(tmp_path / f"p{number}", score, parent=parent)]
        paths += [an_odcorr(tmp_path / f"o{number}", odcorr, parent)]
    text = page_of(tmp_path, *paths)
    board = text.split("Leaderboard")[1].split("</table>")[0]
    assert re.findall(r"<td>(p\d)</td>", board) == ["p1", "p2", "p0"]
    assert "0.4000" in board and "<th>ECE</th>" not in board
    assert (
        text.count("probes of data set not named, paper: Spearman -1.00, n = 3") == 2
    )  # ODCorr, RankMe
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    over = [title for title in titles if " over ODCorr" in title]
    assert over == [
        "balanced accuracy over ODCorr of training patches",
        "balanced accuracy over ODCorr of the embeddings",
        "RankMe over ODCorr of training patches",
        "RankMe over ODCorr of the embeddings",
    ]
    looks, measured = (
        text.split(f"<figcaption>{title}<")[1].split("</figure>")[0] for title in over[2:]
    )
    assert "odcorr:" not in looks and "one:" in looks
    assert "odcorr: Spearman +1.00, n = 3" in measured and "one:" not in measured
    assert "one, linear probe: Spearman -1.00, n = 5" in text
    assert "one, linear probe: Spearman +1.00, n = 5" in text
    assert "Learning curves" in text and text.count("<h2>") == 9


def test_a_leaderboard_has_one_table_a_data_set_and_protocol(tmp_path):
    paths = []
    for name, model, task in (
        ("p0", "uni", "bach"),
        ("p1", "phikon", "bach"),
        ("p2", "uni", "crc"),
    ):
        paths.append(a_probe(tmp_path / name, 0.5, scored={"model": model, "task": task}))
    paths.append(
        a_probe(tmp_path / "p3", 0.9, scored={"model": "uni", "task": "crc", "partial": True})
    )
    board = page_of(tmp_path, *paths).split("Leaderboard")[1]
    titles = re.findall(r"<h4>(.*?)</h4>", board)
    assert titles == ["bach, paper", "crc, paper", "crc (not complete), paper"]
    first = board.split("<h4>")[1]
    assert "<td>uni</td>" in first and "<td>phikon</td>" in first
    assert re.findall(r"<td>(p\d)</td>", first) == ["p0", "p1"]


def test_figure_6_keeps_data_sets_apart(tmp_path):
    """Within each of two data sets accuracy falls with ODCorr; together they would seem to rise."""
    paths = []
    for task, at in (("bach", 0.0), ("crc", 0.4)):
        for number in range(3):
            parent = f"embeddings:{task}{number}"
            score, odcorr = 0.5 + at - number / 50, 0.3 + at + number / 50
            name = f"{task}{number}"
            scored = {"model": "uni", "task": task}
            paths.append(a_probe(tmp_path / f"p{name}", score, parent=parent, scored=scored))
            paths.append(an_odcorr(tmp_path / f"o{name}", odcorr, parent))
    text = page_of(tmp_path, *paths)
    for task in ("bach", "crc"):
        assert f"probes of {task}, paper: Spearman -1.00, n = 3" in text


def test_scores_of_odcorr_show_exports_and_spectrum(tmp_path):
    path = an_odcorr(tmp_path / "o", 0.5)
    frame = scores.table(
        [("odcorr", "", 10, 0.9), ("odcorr", "", 20, 0.5), ("odcorr", "", None, 0.5)]
        + [("rankme", "", 10, 3.0), ("rankme", "", 20, 9.0), ("rankme", "", None, 9.0)]
    )
    header = artifacts.Header(kind="scores", settings={"task": "odcorr"}, metrics={"odcorr": 0.5})
    scores.write(path, frame, header, {"spectrum": [8.0, 1.0, 1.0, 0.0]})
    text = page_of(tmp_path, path)
    drawn = text.split("ODCorr of every export")[-1].split("</figure>")[0]
    assert "10: 0.9" in drawn and "20: 0.5" in drawn
    fall = text.split("share of variance by principal direction")[-1].split("</figure>")[0]
    assert re.findall(r"<title>(.*?)</title>", fall) == [
        "0: -0.09691", "0.301: -1", "0.477: -1",
    ]  # fmt: skip


def test_scores_that_were_made_otherwise_share_no_table():
    def scores(**settings):
        header = artifacts.Header(kind="scores", settings={"task": "probe", **settings})
        return inputs.Scores("p", None, header, pl.DataFrame(), {}).terms

    plain = {"protocol": {"name": "paper"}, "method": "linear", "select": "val", "test": "test"}
    assert scores(**plain, shots=None, folds=None) == "paper"
    assert (
        scores(**{**plain, "shots": 5, "select": "last"}) == "paper, 5 images a class, select last"
    )
    assert scores(method="knn", folds=5, by="group") == "knn, 5 folds"
    assert scores(method="logreg", folds="split", test="val") == "logreg, folds of split, test val"
    assert scores(task="segment") == "segment"


def test_segmentations_of_other_images_or_classes_share_no_table():
    def board(images, **settings):
        header = artifacts.Header(
            kind="scores",
            parents=(f"images:{images}", "encoder:e"),
            settings={"task": "segment", **settings},
            metrics={
                "dice_micro_foreground": 0.5,
                "dice_micro_foreground_low": 0.4,
                "dice_micro_foreground_high": 0.6,
            },
        )
        return inputs.Scores("p", None, header, pl.DataFrame(), {})

    same = several._leaderboard([board("a", labels="objects"), board("a", labels="objects")])
    assert same.count("<h4>") == 1 and "data set not named, images:a, labels objects" in same
    assert "0.400 to 0.600" in same
    for other in (board("b", labels="objects"), board("a", labels="classes")):
        assert several._leaderboard([board("a", labels="objects"), other]).count("<h4>") == 2


def test_spearman():
    assert several.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert several.spearman([1, 2], [1, 2]) is None
    assert several.spearman([1, 2, 3], [1, 1, 1]) is None
