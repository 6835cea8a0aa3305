"""What a probe predicted for every reported image: a table beside the scores.

Legend: R = runs, N = rows, C = classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import scores

FILE = "predictions"
"""What `files` of the scores calls it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Predictions:
    """What was predicted.

    Attributes:
        name: what messages call it.
        ids: of the images; None where the embeddings had none.
        classes: C names.
        truth_N: class of each image.
        units_N: number from 0 of what is resampled together.
        predicted_RN: class that each run takes.
        probability_RNC: of each class.
    """

    name: str
    ids: Sequence[str] | None
    classes: tuple[str, ...]
    truth_N: npt.NDArray[np.int64]
    units_N: npt.NDArray[np.int64]
    predicted_RN: npt.NDArray[np.int64]
    probability_RNC: npt.NDArray[np.float64]

    def frame(self) -> pl.DataFrame:
        """The table, see `docs/artifacts.md`."""
        runs, rows, classes = self.probability_RNC.shape
        flat = self.probability_RNC.transpose(1, 0, 2).reshape(rows, runs * classes)
        ids = self.ids if self.ids is not None else [None] * rows
        labels = np.array(self.classes)[self.truth_N]
        return pl.DataFrame(
            {
                "id": pl.Series(ids, dtype=pl.String),
                "label": pl.Series(labels, dtype=pl.String),
                "unit": self.units_N,
                "predicted": pl.Series(
                    np.ascontiguousarray(self.predicted_RN.T), dtype=pl.Array(pl.Int64, runs)
                ),
                "probability": pl.Series(
                    flat.astype(np.float32), dtype=pl.Array(pl.Float32, runs * classes)
                ),
            }
        )

    def header(self, parent: str) -> artifacts.Header:
        """The artifact's header."""
        settings = {"classes": list(self.classes), "runs": len(self.predicted_RN)}
        return artifacts.Header(kind="predictions", parents=(parent,), settings=settings)


def read(path: str | Path) -> Predictions:
    """Read the predictions that belong to scores, or a table of predictions itself.

    Args:
        path: what `probe -o` was given, the table of scores, or the predictions.

    Raises:
        errors.InputError: no such file, or scores that carry no predictions.
    """
    path = Path(path)
    path = scores.place(path).table if path.is_dir() else path
    if artifacts.read_header(path, "scores", "predictions").kind == "scores":
        table = artifacts.read_table(path, "scores")
        if FILE not in table.header.files:
            raise errors.InputError(
                f"{path} carries no predictions.", "pathfm probe ... -o FOLDER makes them"
            )
        found = artifacts.read_table(table.file(FILE), "predictions")
        if found.header.parents != (f"scores:{table.header.id}",):
            raise errors.InputError(
                f"{found.path} belongs to other scores than {path}.", "probe again, --overwrite"
            )
    else:
        found = artifacts.read_table(path, "predictions")
    return _parsed(path, found)


def _parsed(path: Path, found: artifacts.Table) -> Predictions:
    try:
        classes = tuple(map(str, found.header.settings["classes"]))
        runs = int(found.header.settings["runs"])
        number = {name: at for at, name in enumerate(classes)}
        truth = np.array([number[name] for name in found.frame["label"]], dtype=np.int64)
        shape = (found.frame.height, runs, len(classes))
        probability = found.frame["probability"].to_numpy().reshape(shape).astype(np.float64)
        predicted = found.frame["predicted"].to_numpy().reshape(shape[:2])
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise errors.InputError(f"{path} holds damaged predictions.", "probe again") from error
    return Predictions(
        name=str(path),
        ids=None if found.frame["id"].null_count() else found.frame["id"].to_list(),
        classes=classes,
        truth_N=truth,
        units_N=found.frame["unit"].to_numpy().astype(np.int64),
        predicted_RN=np.ascontiguousarray(predicted.T),
        probability_RNC=np.ascontiguousarray(probability.transpose(1, 0, 2)),
    )
