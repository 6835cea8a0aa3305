"""A quick look at an encoder with labels: k-NN and a linear probe in seconds, by no protocol.

For curves over a training run: the same images, the same fixed settings and no random choice at
every step, so that differences are the encoder's. For a score to quote: `probe`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pathfm_cli import errors
from pathfm_cli.tasks import features, images, source
from pathfm_cli.tasks.datasets import catalogue

NEIGHBOURS = 20
"""k of the k-NN vote (DINO's `eval_knn.py` names 20 the best of its four)."""
INVERSE_PENALTY = 0.01
"""C of the logistic regression on standardised features."""
_ITERATIONS = 1000

Features = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
    """Images with classes: a source of the chosen rows, and which of them train."""

    data: source.Source
    classes: npt.NDArray[np.int64]
    """(N,) class of each row, from 0."""
    trains: npt.NDArray[np.bool_]
    """(N,) whether the row trains; the others are scored."""

    @property
    def chance(self) -> float:
        """Balanced accuracy of a guess."""
        return 1 / len(np.unique(self.classes[self.trains]))


def open_labelled(name: str, per_split: int) -> Labelled:
    """Open images with labels and splits: train, and test or else val.

    Args:
        name: a folder (SPLIT/CLASS/*) or a table of images with the columns label and split, as
            `embed --images` takes them, or a data set of `pathfm tasks` by name.
        per_split: images of each split that are used at most, drawn with a fixed seed.

    Raises:
        errors.UsageError: labels or splits are missing, or there is one class only.
        errors.InputError: it cannot be read.
    """
    if name in catalogue.DATASETS and not Path(name).exists():
        data = catalogue.open_task(name, None, partial=False)
    else:
        data = images.open_images(name)
    for column in ("label", "split"):
        if column not in data.rows.columns:
            raise errors.UsageError(
                f"{name} has no {column}: a labelled set needs train and test.",
                "folders SPLIT/CLASS/*, or a table with the columns path, label, split",
            )
    known = data.rows["split"].drop_nulls().unique().to_list()
    tests = [alias for role in ("test", "val") for alias in features.aliases(role)]
    test = next((alias for alias in tests if alias in known), None)
    if "train" not in known or test is None:
        raise errors.UsageError(
            f"{name} needs a split train, and test or val; it has "
            f"{', '.join(sorted(known)) or 'none'}.",
            "folders SPLIT/CLASS/*, or a table with the columns path, label, split",
        )
    picked = np.concatenate([_some(data, split, per_split) for split in ("train", test)])
    rows = data.rows[picked]
    trains = (rows["split"] == "train").to_numpy()
    known_classes = sorted(rows["label"].filter(rows["split"] == "train").unique())
    strange = sorted(set(rows["label"]) - set(known_classes))
    if len(known_classes) < 2 or strange:
        why = f"train lacks {strange[0]}" if strange else "train holds one class only"
        raise errors.UsageError(f"{name}: {why}.", "name the same classes in every split")
    classes = rows["label"].replace_strict(known_classes, range(len(known_classes))).to_numpy()
    chosen = dataclasses.replace(data, rows=rows, read=lambda row: data.read(int(picked[row])))
    return Labelled(chosen, classes.astype(np.int64), trains)


def scores(
    vectors: Features, labelled: Labelled, usable: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Balanced accuracy of a k-NN vote and of a linear probe.

    Args:
        vectors: (N, K) finite.
        labelled: what they are of.
        usable: (N,) rows that have a vector.

    Returns:
        `knn`: 20 neighbours by cosine, each with one vote. `linear`: logistic regression with
        C = 0.01 on features standardised over train. Empty where train has fewer than two
        classes left, or no row is left to score.
    """
    from sklearn import linear_model, metrics, neighbors, pipeline, preprocessing

    train, test = labelled.trains & usable, ~labelled.trains & usable
    if len(np.unique(labelled.classes[train])) < 2 or not test.any():
        return {}
    methods = {
        "knn": neighbors.KNeighborsClassifier(
            min(NEIGHBOURS, int(train.sum())), metric="cosine", algorithm="brute"
        ),
        "linear": pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(C=INVERSE_PENALTY, max_iter=_ITERATIONS),
        ),
    }
    found = {}
    for name, method in methods.items():
        method.fit(vectors[train], labelled.classes[train])
        predicted = method.predict(vectors[test])
        truth = labelled.classes[test]
        found[name] = float(
            metrics.recall_score(truth, predicted, average="macro", labels=np.unique(truth))
        )
    return found


def _some(data: source.Source, split: str, at_most: int) -> npt.NDArray[np.int64]:
    """Rows with a label of a split, ascending; more than `at_most` are drawn with a fixed seed."""
    named = (data.rows["split"] == split) & data.rows["label"].is_not_null()
    rows = np.flatnonzero(named.fill_null(False).to_numpy())
    if len(rows) > at_most:
        generator = np.random.Generator(np.random.Philox(0))
        rows = np.sort(generator.choice(rows, at_most, replace=False))
    return rows.astype(np.int64)
