from __future__ import annotations

import pytest

from pathfm_cli import errors
from pathfm_cli.model import zoo
from pathfm_cli.tasks import protocols, reference
from pathfm_cli.tasks.datasets import catalogue

KAIKO = {"task": "bach", "model": "kaiko-s16"}
PAPER = protocols.Config()


def test_two_per_cent_of_the_published_score():
    """Table I: .797, so .78106 to .81294."""
    for score, passed in (
        (0.797, True),
        (0.7811, True),
        (0.781, False),
        (0.8129, True),
        (0.814, False),
    ):
        found = reference.check("paper", KAIKO, score, PAPER)
        assert (found.published, found.passed) == (0.797, passed)
        assert found.line().startswith("PASS" if passed else "FAIL")
    assert "difference -0.0160 (-2.0%; 2% allowed)" in (
        reference.check("paper", KAIKO, 0.781, PAPER).line()
    )


def test_tables_name_encoders_and_data_sets_that_there_are():
    for table in reference.tables().values():
        models = [model for row in table.rows for model in row.models]
        assert len(models) == len(set(models)) == 11
        for model in models:
            assert model.startswith("random/") or zoo.find(model)
        for row in table.rows:
            assert {task.partition(":")[0] for task in row.scores} <= set(catalogue.DATASETS)
            assert all(0.4 <= score < 1 for score in row.scores.values())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("papr", KAIKO, "no reference 'papr'"),
        ("paper", {}, "needs to know the data set"),
        ("paper", {**KAIKO, "model": "uni"}, "no score of uni on bach"),
        ("paper", {**KAIKO, "task": "breakhis"}, "no score of kaiko-s16 on breakhis"),
    ],
)
def test_what_has_no_reference(name, settings, message):
    with pytest.raises(errors.UsageError, match=message):
        reference.check(name, settings, 0.5, PAPER)


def test_pcam_reported_on_val_is_held_against_val():
    pcam = {"task": "pcam", "model": "kaiko-s16"}
    for reported, published in (("test", 0.893), ("val", 0.903)):
        assert reference.check("paper", pcam, 0.5, PAPER, reported).published == published
    assert reference.check("paper", KAIKO, 0.5, PAPER, "val").published == 0.797


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({"partial": True}, {}, "bach is not complete"),
        ({"embedding": "cls+mean"}, {}, r"embedding cls\+mean, not cls"),
        ({"image_size_px": 448}, {}, "image_size_px 448, not 224"),
        ({"mean": [0.485, 0.456, 0.406]}, {}, "mean .*, not .0.5, 0.5, 0.5."),
        ({}, {"method": "knn"}, "--method knn, not linear"),
        ({}, {"protocol": "eva-0.4"}, "--protocol eva-0.4, not paper"),
        ({}, {"shots": 4}, "--shots 4"),
        ({}, {"folds": 5}, "--folds"),
        ({}, {"test": "x"}, "not the published splits"),
        ({}, {"train": "x"}, "not the published splits"),
        ({}, {"select": "last"}, "--select last"),
        ({"partial": True}, {"shots": 4}, "not complete; --shots 4"),
    ],
)
def test_what_does_not_compare_with_the_table(settings, config, message):
    with pytest.raises(errors.UsageError, match=message):
        reference.check("paper", {**KAIKO, **settings}, 0.5, protocols.Config(**config))


def test_an_encoder_applied_as_its_authors_do_compares():
    kaiko = {"embedding": "cls", "image_size_px": 224, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert reference.check("paper", {**KAIKO, **kaiko}, 0.8, PAPER).passed
    fresh = {"task": "bach", "model": "random/vit_small_patch16_224", "mean": [0.5] * 3}
    assert not reference.check("paper", {**fresh, "embedding": "cls"}, 0.8, PAPER).passed
    virchow = {"task": "crc", "model": "virchow", "embedding": "cls+mean"}
    assert reference.check("paper", virchow, 0.5, PAPER).published > 0.5


def test_table_1_as_printed():
    """Columns BACH CRC MHIST PCam TP53 CoNSeP, row by row."""
    printed = """
        random/vit_small_patch16_224 0.410 0.617 0.501 0.728 0.500 0.583
        dino-s16 0.695 0.935 0.831 0.849 0.519 0.611
        dino-b8 0.710 0.939 0.814 0.856 0.548 0.710
        lunit-s16 0.801 0.934 0.768 0.895 0.571 0.654
        phikon 0.725 0.935 0.777 0.915 0.630 0.666
        kaiko-s16 0.797 0.943 0.828 0.893 0.633 0.649
        kaiko-s8 0.834 0.946 0.832 0.887 0.621 0.724
        kaiko-b16 0.810 0.960 0.826 0.898 0.651 0.658
        kaiko-b8 0.865 0.956 0.809 0.921 0.659 0.741
        kaiko-l14 0.870 0.930 0.809 0.898 0.656 0.679
        virchow n/a 0.962 0.830 0.933 n/a n/a
    """
    tasks = ("bach", "crc", "mhist", "pcam", "tp53", "consep")
    lines = [line.split() for line in printed.strip().splitlines()]
    assert len(lines) == len(reference.find("paper").rows)
    for model, *scores in lines:
        row = reference.row(reference.find("paper"), model)
        assert row is not None
        own = {task: score for task, score in row.scores.items() if task in tasks}
        assert own == {t: float(s) for t, s in zip(tasks, scores, strict=True) if s != "n/a"}
