"""Which cells of 8 px are more than half nucleus: a second task, which stain cannot answer.

Legend: h x w cells of an image, D width of a token.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn import linear_model, metrics, pipeline, preprocessing

from pathfm_cli.model import transform, weights

CELL_PX = 8

Tokens = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


def average_precision(folder: Path, tokens: Tokens) -> float:
    """Logistic regression on the tokens of the training images, scored on the test images.

    Args:
        folder: `patches/dsb2018`.
        tokens: (H, W, 3) uint8 to (h * w, D), sides multiples of `CELL_PX`.
    """
    parts: dict[str, tuple[list[NDArray[np.floating]], list[NDArray[np.bool_]]]] = {}
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image = np.asarray(Image.open(folder / row["image"]).convert("RGB"))
            nucleus = np.asarray(Image.open(folder / row["label"])) > 0
            h, w = nucleus.shape[0] // CELL_PX, nucleus.shape[1] // CELL_PX
            inside = np.s_[: h * CELL_PX, : w * CELL_PX]
            cells = nucleus[inside].reshape(h, CELL_PX, w, CELL_PX).mean(axis=(1, 3)) > 0.5
            features, labels = parts.setdefault(row["split"], ([], []))
            features.append(tokens(image[inside]))
            labels.append(cells.ravel())
    model = linear_model.LogisticRegression(max_iter=1000)
    probe = pipeline.make_pipeline(preprocessing.StandardScaler(), model)
    probe.fit(np.concatenate(parts["train"][0]), np.concatenate(parts["train"][1]))
    found = probe.decision_function(np.concatenate(parts["test"][0]))
    return float(metrics.average_precision_score(np.concatenate(parts["test"][1]), found))


def tokens_of(encoder: weights.Encoder) -> Tokens:
    """The patch tokens of an encoder whose patches are cells."""

    def tokens(image: NDArray[np.uint8]) -> NDArray[np.floating]:
        pixels = torch.from_numpy(image[None].copy())
        with torch.inference_mode():
            found = encoder.module.forward_features(
                transform.normalise(pixels, encoder.mean, encoder.std)
            )
        patches: NDArray[np.floating] = found[0, encoder.prefix_tokens :].float().numpy()
        return patches

    return tokens
