"""Which slides take part: conditions, nested shares, seeds."""

import numpy as np
import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.data import select

SLIDES = pl.DataFrame({"slide": [f"s{n}" for n in range(300)], "stain": ["HE", "HE", "IHC"] * 100})


def names(frame: pl.DataFrame = SLIDES, where: str = "", share: float = 1.0, seed: int = 0) -> set:
    return set(frame["slide"].filter(pl.Series(select.chosen(frame, where, share, seed))))


def test_shares_are_nested_and_rounded_up() -> None:
    shares = [names(share=share) for share in (0.001, 0.01, 0.1, 0.3, 0.999, 1.0)]
    assert [len(share) for share in shares] == [1, 3, 30, 90, 300, 300]
    for small, large in zip(shares, shares[1:], strict=False):
        assert small <= large


def test_a_share_depends_on_seed_and_names_alone() -> None:
    shuffled = SLIDES.sample(fraction=1.0, shuffle=True, seed=1)
    assert names(share=0.1) == names(shuffled, share=0.1)
    assert names(share=0.1) != names(share=0.1, seed=1)
    more = pl.concat([SLIDES, pl.DataFrame({"slide": ["new"], "stain": ["HE"]})])
    assert len(names(more, share=0.1) & names(share=0.1)) >= 29


def test_a_share_is_of_what_meets_the_condition() -> None:
    ihc = set(SLIDES.filter(pl.col("stain") == "IHC")["slide"])
    assert names(where="stain == 'IHC'") == ihc
    tenth = names(where="stain == 'IHC'", share=0.1)
    assert len(tenth) == 10 and tenth < ihc


def test_a_condition_that_nothing_meets_says_what_there_is() -> None:
    with pytest.raises(errors.UsageError, match="None of the 300 slides meets") as caught:
        names(where="stain == 'PAS'")
    assert caught.value.hint == "stain holds HE, IHC"


def test_the_least_are_found_as_bytes_are_compared():
    rows = [(2, 9), (1, 7), (2, 1), (0, 5), (2, 3), (1, 7)]
    words = np.array([(a, b, 0, 0) for a, b in rows], dtype=">u8")
    for count in range(7):
        ordered = sorted(range(6), key=lambda row: rows[row])
        assert select._least(words, count).tolist() == ordered[:count]
