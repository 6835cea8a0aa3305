"""The metrics once more, as TensorBoard reads them: `tensorboard/` in the run folder, if asked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathfm_cli import errors
from pathfm_cli.pretrain import folder, place, recipe


def check(settings: recipe.Recipe) -> None:
    """See that what the recipe asks for is installed.

    Raises:
        errors.MissingExtra: TensorBoard is absent.
    """
    if settings.train.tensorboard:
        _writer_class()


class Board:
    """Scalars by heading and name; does nothing where none are wanted, or on ranks other than 0."""

    def __init__(self, settings: recipe.Recipe, run: Path, here: place.Place, first: int) -> None:
        """Open the board.

        Args:
            settings: `train.tensorboard` says whether there is one.
            run: the run folder.
            here: this rank.
            first: steps taken; TensorBoard forgets what a killed run wrote of later ones.
        """
        self._writer = None
        if here.leads and settings.train.tensorboard:
            self._writer = _writer_class()(str(run / folder.TENSORBOARD), purge_step=first + 1)

    def write(self, heading: str, values: Mapping[str, Any]) -> None:
        """Add the numbers of a line as `heading/name`; `values` holds `step`."""
        if self._writer is None:
            return
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{heading}/{name}", value, values["step"])
        self._writer.flush()

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._writer is not None:
            self._writer.close()


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise errors.MissingExtra("TensorBoard", "tensorboard", "tensorboard") from error
