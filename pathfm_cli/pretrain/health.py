"""Whether a run is sound: skipped steps are listed, a collapse is told; either may end it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pathfm_cli import errors
from pathfm_cli.pretrain import collapse, folder, guard, metrics, place, recipe

log = logging.getLogger("pathfm.pretrain")


class Health:
    """Of one rank. All ranks see the same numbers, so they come to the same end."""

    def __init__(self, run: Path, settings: recipe.Recipe, here: place.Place, first: int) -> None:
        """Go on from step `first`, with what was logged before it.

        Args:
            run: run folder; `skipped/steps-rank-N.jsonl` in it lists the steps that were skipped.
            settings: the recipe.
            here: this rank.
            first: steps taken.
        """
        self._settings = settings
        self._leads = here.leads
        self._listing = run / folder.SKIPPED / f"steps-rank-{here.rank}.jsonl"
        self._file = metrics.Log(self._listing, first) if self._listing.exists() else None
        self._indices: dict[int, torch.Tensor] = {}
        self._detector = collapse.Detector(
            settings.head.prototypes, 2 * settings.train.batch_size, settings.warmup_steps
        )
        self._collapsed = False
        for line in metrics.lines(run / folder.METRICS):
            if line["step"] <= first:
                self._collapsed = self._detector.see(line)

    def remember(self, step: int, indices: torch.Tensor) -> None:
        """Keep which patches this rank has in step number `step`, from 0, until `tell`."""
        self._indices[step] = indices

    def tell(self, steps: guard.Guard) -> None:
        """List what was skipped since this was last called; waits for the device.

        Raises:
            errors.PathfmError: more than `train.max_nonfinite` in a row.
        """
        skipped = steps.told()
        for one in skipped:
            # The loss as text: JSON has no nan.
            values = {"step": one.step + 1, "loss": str(one.loss)}
            self._list({**values, "indices": self._indices[one.step].tolist()})
        self._indices.clear()
        if not skipped:
            return
        step = skipped[-1].step + 1
        if self._leads:
            text = "step %d was skipped: a loss or gradient is not finite; its patches: %s"
            log.warning(text, step, self._listing)
        longest, limit = int(steps.longest), self._settings.train.max_nonfinite
        if longest > limit:
            raise errors.PathfmError(
                f"By step {step}, {longest} steps in a row had a loss or gradient that is not "
                f"finite, more than {limit} (train.max_nonfinite).",
                "a lower learning rate: --set optim.base_lr="
                f"{self._settings.optim.base_lr / 2:g} --overwrite",
            )

    def see(self, line: Mapping[str, Any]) -> bool:
        """Whether the run has collapsed by this line; says so when that begins."""
        before, self._collapsed = self._collapsed, self._detector.see(line)
        if self._collapsed and not before and self._leads:
            log.warning("%s", self._sentence(line["step"]))
        return self._collapsed

    def check(self, step: int) -> None:
        """End a collapsed run, if it is meant to end.

        Raises:
            errors.PathfmError: it has collapsed and `train.on_collapse` is stop.
        """
        if self._collapsed and self._settings.train.on_collapse == "stop":
            raise errors.PathfmError(
                self._sentence(step),
                "a lower learning rate or teacher temperature, milder augmentation or a larger "
                "batch, and --overwrite",
            )

    def _sentence(self, step: int) -> str:
        return (
            f"The run has collapsed by step {step}: for {collapse.PATIENCE_STEPS} steps the "
            "teacher's targets have been the same for all images."
        )

    def _list(self, values: Mapping[str, Any]) -> None:
        if self._file is None:
            self._listing.parent.mkdir(parents=True, exist_ok=True)
            self._file = metrics.Log(self._listing, 0)
        self._file.write(values)
