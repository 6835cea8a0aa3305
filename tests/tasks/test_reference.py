from __future__ import annotations

import pytest

from pathfm_cli import errors
from pathfm_cli.model import zoo
from pathfm_cli.tasks import reference
from pathfm_cli.tasks.datasets import catalogue

KAIKO = {"task": "bach", "model": "kaiko-s16"}


def test_two_per_cent_of_the_published_score():
    """Table I: .797, so .78106 to .81294."""
    for score, passed in (
        (0.797, True),
        (0.7811, True),
        (0.781, False),
        (0.8129, True),
        (0.814, False),
    ):
        found = reference.check("paper", KAIKO, score)
        assert (found.published, found.passed) == (0.797, passed)
        assert found.line().startswith("PASS" if passed else "FAIL")
    assert "difference -0.0160 (-2.0%; 2% allowed)" in reference.check("paper", KAIKO, 0.781).line()


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
        reference.check(name, settings, 0.5)
