"""What the batches of a stream come from: a plan, and its cohort opened for drawing and reading."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw, fixed, held, windows
from pathfm_cli.wsi import pyramid


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the batches of one rank; travels to the workers."""

    cohort_path: Path
    config: draw.SampleConfig | None
    seed: int
    batch_size: int
    first_step: int
    steps: int
    rank: int
    world_size: int
    distinct: int
    patches_per_window: int
    policy: pyramid.Policy
    idct: bool
    pixels: Path | None = None

    def indices(self, number: int) -> range:
        """Running numbers of the batch that is `number` after the first."""
        step = self.first_step + number
        start = (step * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A cohort and what draws from it.

    Attributes:
        cohort: the slides.
        source: knows patch number i.
        count: how many patches there are; 0: endless.
        size_px: their side.
        held: pixels on a local disk, if wanted.
    """

    cohort: cohort.Cohort
    source: draw.Source
    count: int
    size_px: int
    held: held.Held | None = None


def open_(plan: Plan) -> Opened:
    """Open the cohort of a plan.

    Raises:
        errors.UsageError: nothing can be drawn, windows of a fixed set are asked for, or pixels of
            an endless stream are to be kept.
        errors.InputError: the artifact cannot be read.
    """
    opened = cohort.open_cohort(plan.cohort_path, policy=plan.policy, idct=plan.idct)
    if plan.patches_per_window < 1:
        raise errors.UsageError(f"patches_per_window is {plan.patches_per_window}.", "1 or more")
    if opened.table.header.kind == "patches":
        if plan.patches_per_window > 1:
            raise errors.UsageError(
                f"{plan.cohort_path} is a fixed set of patches; it has no windows.",
                "patches_per_window = 1, or train on tissue",
            )
        rows = fixed.Fixed(opened.table, plan.seed, plan.config)
        count = min(plan.distinct or len(rows), len(rows))
        return _with_pixels(plan, Opened(opened, rows, count, rows.size_px))
    if plan.config is None:
        raise errors.UsageError(f"{plan.cohort_path} needs to be told how to draw.")
    sampler = draw.Sampler(opened.table, plan.config, plan.seed)
    many = plan.patches_per_window > 1
    source = windows.Windows(sampler, plan.patches_per_window) if many else sampler
    return _with_pixels(plan, Opened(opened, source, plan.distinct, plan.config.size_px))


def _with_pixels(plan: Plan, opened: Opened) -> Opened:
    """Keep pixels where the plan says so, under a name made of all that decides them."""
    if plan.pixels is None:
        return opened
    if not opened.count:
        raise errors.UsageError(
            "An endless stream has no pixels to keep.", "--distinct-patches 10000"
        )
    config = dataclasses.asdict(plan.config) if plan.config else None
    decides = [plan.seed, config, plan.patches_per_window, plan.policy, plan.idct]
    text = json.dumps([opened.cohort.table.header.id, opened.size_px, *decides])
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    file = held.Held(plan.pixels / f"{name}.patches", opened.size_px)
    return dataclasses.replace(opened, held=file)
