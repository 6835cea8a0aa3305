"""When the teacher's targets stop telling images apart: the collapse of self-distillation.

Two ends are known: targets that are uniform, with the loss pinned at ln K, and targets that are one
and the same prototype for every image (Caron et al. 2021, section 5.3). At either, the entropy of
the mean target equals the mean entropy of the targets. Their difference, the information in nats
that a target holds about its image, is what is watched; the loss alone misleads, since it stays
near ln K in the early steps of a healthy run too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LEAST_INFORMATION = 0.01
"""Of the most a batch could hold, ln(min(N, K)) for N target views: less is a collapse."""
PATIENCE_STEPS = 50
"""It must last this long, at `LEAST_LINES` logged steps or more."""
LEAST_LINES = 3


class Detector:
    """Follows the logged steps of a run. The same steps give the same answers on every rank."""

    def __init__(self, prototypes: int, targets: int, first_step: int) -> None:
        """Start to watch.

        Args:
            prototypes: K.
            targets: target views N of a step over all ranks.
            first_step: earlier ones, in which the learning rate still rises, say nothing.
        """
        self._limit = LEAST_INFORMATION * math.log(min(prototypes, targets))
        self._first_step = first_step
        self._since: int | None = None
        self._lines = 0

    def see(self, line: Mapping[str, Any]) -> bool:
        """Whether the run has collapsed by this line of its metrics."""
        information = line["marginal_entropy"], line["teacher_entropy"]
        if None in information or line["step"] < self._first_step:
            return False
        if information[0] - information[1] >= self._limit:
            self._since, self._lines = None, 0
            return False
        self._lines += 1
        if self._since is None:
            self._since = line["step"]
        lasts = line["step"] - self._since >= PATIENCE_STEPS
        return lasts and self._lines >= LEAST_LINES
