"""Two probes on the same images: is the difference more than the choice of images explains?

Legend: R = runs, N = images, U = units (images or whole groups), C = classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy import stats

from pathfm_cli import errors
from pathfm_cli.tasks import bootstrap, predictions

Truth = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """The first minus the second.

    Attributes:
        images: that both predicted.
        units: what was resampled: images, or whole groups.
        scores: mean balanced accuracy over the runs, of the first and of the second.
        low, high: ends of the 95 % interval of the difference by paired bootstrap.
        p_bootstrap: twice the smaller share of resamples on one side of 0; at least 1 / draws.
        first_only, second_only: images that only one of them has right, by the mean of its runs'
            probabilities.
        p_mcnemar: two-sided, exact. It takes every image for independent.
        notes: what a person should know.
    """

    images: int
    units: int
    scores: tuple[float, float]
    low: float
    high: float
    p_bootstrap: float
    first_only: int
    second_only: int
    p_mcnemar: float
    notes: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """Of the scores."""
        return self.scores[0] - self.scores[1]

    def metrics(self) -> dict[str, float]:
        """Flat numbers for the record."""
        return {
            "difference": self.difference,
            "difference_low": self.low,
            "difference_high": self.high,
            "p_bootstrap": self.p_bootstrap,
            "p_mcnemar": self.p_mcnemar,
            "only_this_right": float(self.first_only),
            "only_other_right": float(self.second_only),
            "compared_images": float(self.images),
        }

    def lines(self, other: str) -> list[str]:
        """For a person."""
        return [
            f"against {other}: {self.scores[0]:.4f} - {self.scores[1]:.4f} = "
            f"{self.difference:+.4f} on {self.images} images",
            f"  paired bootstrap: {self.low:+.4f} to {self.high:+.4f} in {bootstrap.LEVEL:.0%} of "
            f"{bootstrap.DRAWS} resamples of {self.units} units, p {self.p_bootstrap:.3g}",
            f"  McNemar: {self.first_only} right only here, {self.second_only} only there, "
            f"p {self.p_mcnemar:.3g}",
        ]


def compare(
    first: predictions.Predictions, second: predictions.Predictions, seed: int = 0
) -> Comparison:
    """Compare two probes on the images that both predicted.

    Raises:
        errors.InputError: as `matched`.
    """
    at_first, at_second = matched(first, second)
    truth_N = first.truth_N[at_first]
    right = [
        (one.predicted_RN[:, at] == one.truth_N[at]).mean(0)
        for one, at in ((first, at_first), (second, at_second))
    ]
    units_N: npt.NDArray[np.int64] = np.unique(first.units_N[at_first], return_inverse=True)[1]
    draws = [bootstrap.resampled(truth_N, one, units_N, seed) for one in right]
    change = draws[0] - draws[1]
    tail = (1 - bootstrap.LEVEL) / 2
    low, high = np.quantile(change, [tail, 1 - tail])
    side = min(float((change <= 0).mean()), float((change >= 0).mean()))
    only = _only(_voted(first, at_first), _voted(second, at_second))
    return Comparison(
        images=len(at_first),
        units=int(units_N.max()) + 1,
        scores=(_score(truth_N, right[0]), _score(truth_N, right[1])),
        low=float(low),
        high=float(high),
        p_bootstrap=min(1.0, max(2 * side, 1 / bootstrap.DRAWS)),
        first_only=only[0],
        second_only=only[1],
        p_mcnemar=mcnemar(*only),
        notes=_notes(first, second, len(at_first)),
    )


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p that a discordant image falls to either side with probability 1/2."""
    discordant = first_only + second_only
    if not discordant:
        return 1.0
    return float(stats.binomtest(first_only, discordant).pvalue)


def matched(
    first: predictions.Predictions, second: predictions.Predictions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the images that both have; needs nothing that was predicted.

    Raises:
        errors.InputError: images without ids or with an id twice, none in common, other classes,
            or an image with two labels.
    """
    if set(first.classes) != set(second.classes):
        raise errors.InputError(
            f"{second.name} has other classes: {', '.join(second.classes[:5])}.", "same data set"
        )
    places = []
    for one in (first, second):
        if one.ids is None:
            raise errors.InputError(
                f"{one.name} names no images, so they cannot be matched.",
                "embeddings need a column id",
            )
        place = {name: at for at, name in enumerate(one.ids)}
        if len(place) < len(one.ids):
            raise errors.InputError(f"{one.name} has an image twice.", "ids must be unique")
        places.append(place)
    common = [name for name in places[0] if name in places[1]]
    if not common:
        raise errors.InputError(
            f"{second.name} has no image in common with {first.name}.",
            "both must be of the same data set and split",
        )
    at = [np.array([place[name] for name in common], dtype=np.int64) for place in places]
    truth = np.array(first.classes)[first.truth_N[at[0]]]
    differ = truth != np.array(second.classes)[second.truth_N[at[1]]]
    if differ.any():
        name = common[int(differ.argmax())]
        raise errors.InputError(
            f"{name} has another label in {second.name}: it is another task.", "same data set"
        )
    return at[0], at[1]


def _voted(one: predictions.Predictions, at: npt.NDArray[np.int64]) -> Truth:
    voted: Truth = one.probability_RNC[:, at].mean(0).argmax(1) == one.truth_N[at]
    return voted


def _only(first: Truth, second: Truth) -> tuple[int, int]:
    return int((first & ~second).sum()), int((second & ~first).sum())


def _score(truth_N: npt.NDArray[np.int64], right_N: npt.NDArray[np.float64]) -> float:
    counts = np.bincount(truth_N)
    hits = np.bincount(truth_N, weights=right_N)
    return float(np.mean(hits[counts > 0] / counts[counts > 0]))


def _notes(
    first: predictions.Predictions, second: predictions.Predictions, common: int
) -> tuple[str, ...]:
    lost = len(first.truth_N) - common, len(second.truth_N) - common
    if not any(lost):
        return ()
    return (
        f"{lost[0]} images are only here and {lost[1]} only in {second.name}: they are left out",
    )
