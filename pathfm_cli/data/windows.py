"""Several patches in a row from one window of a slide, which share most of their tiles.

A random 256 px patch needs parts of about four tiles of 256 px, 3.98 on average. Sixteen patches
inside one window of 1024 px need 25 tiles together: 1.56 each, 0.4 times the bytes and requests.

What it does to randomness: with K patches per window, patches w*K to w*K + K - 1 show one slide at
one mpp. The window, ceil(sqrt(K)) patches wide, lies around patch number w of the endless stream;
in it each position is independent and uniform, under the same condition on tissue. So two patches
of a window share 44 % of their area on average at K = 4 and 9 % at K = 16, single patches remain
spread over all tissue, blurred by half a window, and a batch of B patches shows B / K places
instead of B: choose B / K large, and B a multiple of K.
"""

from __future__ import annotations

import math

from pathfm_cli.data import draw


class Windows:
    """A `draw.Source` whose patches come from windows; a pure function of (seed, index)."""

    def __init__(self, sampler: draw.Sampler, count: int) -> None:
        """Take `count` patches in a row from each window."""
        self._sampler = sampler
        self._count = count
        self._side = math.isqrt(count - 1) + 1

    def draw(self, index: int, attempt: int = 0) -> draw.Patch:
        """Patch number `index`; as its replacement, one from another window.

        Raises:
            errors.SlideError: as `draw.Sampler.draw`.
        """
        anchor = self._sampler.draw(index // self._count, attempt)
        return self._sampler.draw_near(anchor, index, attempt, self._side)
