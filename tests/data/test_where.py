"""Conditions: what they mean, what they refuse, and that nothing is ever run."""

import contextlib

import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.data import where

SLIDES = pl.DataFrame(
    {
        "slide": ["a", "b", "c", "d"],
        "stain": ["HE", "HE", "IHC", None],
        "mpp": [0.25, 0.5, 0.5, 1.0],
        "frozen": [True, False, False, None],
        "year of scan": [2001, 2002, 2003, 2004],
    }
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("stain == 'HE'", "ab"),
        ('stain == "HE" and mpp < 0.5', "a"),
        ("stain != 'HE'", "c"),
        ("stain == None", "d"),
        ("stain is not None", "abc"),
        ("stain in ['IHC', 'PAS']", "c"),
        ("stain not in ('IHC', 'PAS')", "ab"),
        ("not stain == 'HE'", "c"),
        ("not (stain == 'HE' or mpp == 1)", "c"),
        ("0.3 < mpp <= 0.5", "bc"),
        ("mpp > -1", "abcd"),
        ("frozen", "a"),
        ("not frozen", "bc"),
        ("frozen == False", "bc"),
        ("col('year of scan') >= 2003", "cd"),
        ("slide > stain", "abc"),
        ("  stain == 'HE' ", "ab"),
        ("mpp == 0.5 or stain == 'HE' and frozen", "abc"),
    ],
)
def test_conditions_meet_the_rows_they_say(condition: str, expected: str) -> None:
    met = where.matches(SLIDES, condition)
    assert met.null_count() == 0
    assert "".join(SLIDES["slide"].filter(met)) == expected


@pytest.mark.parametrize(
    ("condition", "message", "hint"),
    [
        ("stian == 'HE'", "no column stian", "did you mean stain?"),
        ("case == 'HE'", "no column case", "columns: slide, stain, mpp"),
        ("mpp == '0.5'", "mpp holds a number, but '0.5' is a text", "mpp == 1"),
        ("stain == 1", "stain holds a text, but 1 is a number", "stain == '...'"),
        ("frozen == 1", "frozen holds true or false, but 1 is a number", "frozen == True"),
        ("stain == mpp", "stain holds a text, mpp a number", "one type"),
        ("stain", "stain is no condition by itself", "stain == ..."),
        ("stain = 'HE'", "cannot be read", "--where"),
        ("stain == 'HE", "cannot be read", "--where"),
        ("", "cannot be read", "--where"),
        ("stain in 'HE'", "`in` takes a column and a list", "stain in"),
        ("stain in []", "the list is empty", "stain in"),
        ("mpp < None", "None has no order", "mpp == None"),
        ("1 == 1", "two values are compared", "--where"),
        ("mpp + 1 == 2", "'mpp + 1' is no part of a condition", "--where"),
        ("stain.upper() == 'HE'", "'stain.upper()' is no part", "--where"),
        ("__import__('os').system('x')", "is no part of a condition", "--where"),
        ("[s for s in stain]", "is no part of a condition", "--where"),
        ("(lambda: 1)()", "is no part of a condition", "--where"),
        ("mpp == 1j", "'1j' is no part of a condition", "--where"),
        ("col('a', 'b') == 1", "is no part of a condition", "--where"),
        ("mpp == " + 400 * "9", "cannot be used", ""),
        (300 * "(" + "frozen" + 300 * ")", "cannot be read", "--where"),
        ("frozen" + 400 * " or frozen", "at most 2000", "column"),
    ],
)
def test_what_is_no_condition_is_one_sentence(condition: str, message: str, hint: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        where.matches(SLIDES, condition)
    assert message in str(caught.value) and hint in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("condition", ["not " * 400 + "frozen", "stain == '\0'", 90 * "(" + "mpp"])
def test_hostile_conditions_raise_nothing_else(condition: str) -> None:
    with contextlib.suppress(errors.UsageError):
        assert where.matches(SLIDES, condition).sum() <= 1


def test_values_help_who_wrote_one_that_nothing_meets() -> None:
    held = where.values(SLIDES, "stain == 'H&E' and mpp > 7")
    assert held == ["mpp holds 0.25, 0.5, 1.0", "stain holds HE, IHC"]


def test_a_column_without_values_is_said_to_hold_none() -> None:
    empty = pl.DataFrame(
        {"stain": [None, None], "mpp": [0.25, 0.5]}, schema_overrides={"stain": str}
    )
    assert where.values(empty, "stain == 'HE'") == ["stain holds no value"]
