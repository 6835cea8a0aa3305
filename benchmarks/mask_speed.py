"""How fast tissue is found on the slides of the shared data, and in how much memory.

`benchmarks/tissue.py` runs it. Each method masks the same slides in a fresh process; `otsu` is the
peer of `unet`. Memory is growth over the process before the first slide.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import overlap

from pathfm_cli.data import finders, mask

METHODS = ("unet", "otsu")


def measure(slides: Path, *, quick: bool) -> dict[str, float]:
    """Slides per second, processor seconds a slide and peak memory of each method.

    Args:
        slides: a `slides` artifact.
        quick: one round instead of the best of three.
    """
    best: dict[str, dict[str, float]] = {}
    for _ in range(1 if quick else 3):
        for method in METHODS:
            run = subprocess.run(
                [sys.executable, __file__, method, str(slides)],
                check=True,
                capture_output=True,
                text=True,
            )
            found = json.loads(run.stdout)
            if method not in best or found["cpu_s"] < best[method]["cpu_s"]:
                best[method] = found
    return {
        f"{method}_{key}": value for method, found in best.items() for key, value in found.items()
    }


def in_process(method: str, slides: str) -> dict[str, float]:
    """Mask all slides once; the network is loaded before the clock starts."""
    finder = finders.choose(method, device="cpu")
    if isinstance(finder, finders.UNet):
        finder.network  # noqa: B018 - loads it
    peak_mb = overlap.peak_mb()
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = mask.mask(slides, Path(folder) / "tissue.parquet", finder)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    count = done.record["rows"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "slides_per_s": count / seconds,
        "cpu_s": cpu / count,
        "peak_mb": overlap.peak_mb() - peak_mb,
    }


if __name__ == "__main__":
    print(json.dumps(in_process(*sys.argv[1:])))
