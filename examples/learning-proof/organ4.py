"""Which of four organs a patch is of: 12 slides, three an organ, four of them for the test.

Legend: N images, D width of the embedding.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn import linear_model, metrics, neighbors, pipeline, preprocessing

from pathfm_cli.tasks import odcorr

SIDE_PX = 112
"""The patches are 224 px at 0.506 um/px; six of the eight slides that teach have 1.01 um/px."""
FOLDS = 3
NEIGHBOURS = 20
PENALTY = 0.01
"""Inverse strength of the logistic regression's penalty, on standardised embeddings."""

Bool = NDArray[np.bool_]
Features = NDArray[np.floating]


@dataclasses.dataclass(frozen=True, slots=True)
class Organ4:
    """The patches at `SIDE_PX`, RGB uint8 (N, S, S, 3), their organs, slides and split."""

    images: NDArray[np.uint8]
    organs: NDArray[np.str_]
    slides: NDArray[np.str_]
    test: Bool

    def folds(self, which: Bool, count: int) -> Iterator[Bool]:
        """Images of `which` that are scored in each fold: fold k has the k-th slide of an organ."""
        for fold in range(count):
            scored = np.zeros(len(self.organs), dtype=bool)
            for organ in np.unique(self.organs):
                of_organ = which & (self.organs == organ)
                scored |= of_organ & (self.slides == np.unique(self.slides[of_organ])[fold])
            yield scored


def read(folder: Path) -> Organ4:
    """Read `patches/organ4`."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [
        Image.open(folder / row["file"]).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.BICUBIC)
        for row in rows
    ]
    return Organ4(
        images=np.stack([np.asarray(image) for image in images]),
        organs=np.array([row["organ"] for row in rows]),
        slides=np.array([row["slide"] for row in rows]),
        test=np.array([row["split"] == "test" for row in rows]),
    )


def scores(data: Organ4, features_ND: Features) -> dict[str, float]:
    """Balanced accuracies, and how different the embeddings are, see `docs/odcorr.md`.

    `linear`, `knn`: the eight training slides teach, the four test slides score. `linear_cv`,
    `knn_cv`: mean of three folds of four slides. `linear_train`: the two folds of the training
    slides alone, which settings were chosen by.
    """
    every, train = np.ones_like(data.test), ~data.test
    linear, knn = _linear(), _knn()
    diversity = odcorr.measure([features_ND.astype(np.float32)], *features_ND.shape)

    def folded(model: pipeline.Pipeline, which: Bool, count: int) -> float:
        folds = data.folds(which, count)
        return float(np.mean([_score(model, data, features_ND, which & ~f, f) for f in folds]))

    return {
        "linear": _score(linear, data, features_ND, train, data.test),
        "knn": _score(knn, data, features_ND, train, data.test),
        "linear_cv": folded(linear, every, FOLDS),
        "knn_cv": folded(knn, every, FOLDS),
        "linear_train": folded(linear, train, FOLDS - 1),
        "odcorr": diversity.odcorr,
        "rankme": diversity.rankme,
    }


def _linear() -> pipeline.Pipeline:
    model = linear_model.LogisticRegression(C=PENALTY, max_iter=2000)
    return pipeline.make_pipeline(preprocessing.StandardScaler(), model)


def _knn() -> pipeline.Pipeline:
    model = neighbors.KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance")
    return pipeline.make_pipeline("passthrough", model)


def _score(
    model: pipeline.Pipeline, data: Organ4, features_ND: Features, teaches: Bool, scored: Bool
) -> float:
    model.fit(features_ND[teaches], data.organs[teaches])
    found = model.predict(features_ND[scored])
    return float(metrics.balanced_accuracy_score(data.organs[scored], found))
