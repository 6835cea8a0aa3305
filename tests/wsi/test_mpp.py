import pytest

from pathfm_cli import errors
from pathfm_cli.wsi import mpp

NONE = (0.0, 0.0)
DPI72 = (352.8, 352.8)


@pytest.mark.parametrize(
    ("declared", "tags", "objective", "expected", "source"),
    [
        ((0.25, 0.25), (0.5, 0.5), 40.0, 0.25, "aperio"),
        ((0.25, 0.252), NONE, None, 0.251, "aperio"),
        (None, (0.5, 0.5), 40.0, 0.5, "resolution-tag"),
        (None, DPI72, 40.0, 0.25, "appmag"),
        (None, NONE, 20.0, 0.5, "appmag"),
        (None, (0.05, 0.05), None, 0.05, "resolution-tag"),
        (None, (20.0, 20.0), None, 20.0, "resolution-tag"),
    ],
)
def test_the_order_of_sources(declared, tags, objective, expected, source) -> None:
    found = mpp.resolve(declared, "aperio", tags, objective)
    assert found.mpp == pytest.approx(expected)
    assert found.source == source


@pytest.mark.parametrize(
    ("declared", "tags", "objective", "problem"),
    [
        (None, NONE, None, "the file states none"),
        (None, DPI72, None, "the resolution tags claim 352.8 um/px"),
        (None, (0.005, 0.005), None, "the resolution tags claim 0.005 um/px"),
        (None, NONE, 1000.0, "the file states none"),
        ((0.0, 0.0), (0.5, 0.5), 40.0, "aperio states 0 x 0 um/px"),
        ((25.0, 25.0), NONE, 40.0, "aperio states 25 x 25 um/px"),
        ((0.25, 0.5), NONE, 40.0, "pixels are not square: 0.25 x 0.5 um"),
        (None, (0.5, 0.511), None, "pixels are not square: 0.5 x 0.511 um"),
        ((float("nan"), 0.25), NONE, None, "aperio states nan x 0.25 um/px"),
    ],
)
def test_what_is_not_believed(declared, tags, objective, problem) -> None:
    assert mpp.resolve(declared, "aperio", tags, objective) == mpp.Resolution(None, None, problem)


@pytest.mark.parametrize(
    ("x", "unit", "expected"),
    [(20000.0, 3, 0.5), (50800.0, 2, 0.5), (72.0, 2, 352.7778), (20000.0, 1, 0.0), (0.0, 3, 0.0)],
)
def test_resolution_tags_to_mpp(x: float, unit: int, expected: float) -> None:
    assert mpp.from_tags(x, x, unit) == pytest.approx((expected, expected), abs=1e-4)


@pytest.mark.parametrize("text", ["40x", "", "0", "-1", "nan", "inf", "0.049", "21"])
def test_overrides_that_are_no_mpp(text: str) -> None:
    with pytest.raises(errors.UsageError, match="is no mpp between 0.05 and 20") as caught:
        mpp.parse_override(text)
    assert "not a magnification" in caught.value.hint


def test_an_override() -> None:
    assert mpp.parse_override("0.2528") == 0.2528
