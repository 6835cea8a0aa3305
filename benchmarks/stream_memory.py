"""Memory and open files of a long stream: workers that read patches of many slides.

python benchmarks/stream_memory.py [--quick] [--json] [--minutes 10] [--workers 4] [--slides DIR]

Streams batches of 64 patches at 0.25, 0.5, 1 and 2 um/px from all slides of a folder and throws
them away. Every 5 s the resident memory of this process, the fork server and the workers is summed,
and their open files are counted. `rss_growth` is the median of the last fifth over the median of
the first fifth, after the first minute (a quarter of the time, if that is shorter) of warming up;
`rss_spread` is the largest over the smallest sample after it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from pathfm_cli.data import draw, index, mask, stream

SLIDES = Path(__file__).parents[2] / "shared" / "data" / "slides"
CONFIG = draw.SampleConfig(mpp=(0.25, 0.5, 1.0, 2.0))
EVERY_S = 5.0
WARM_UP_S = 60.0


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def sample(root: int) -> tuple[float, int]:
    """Resident MB of a process and its descendants together, and the most files one has open."""
    resident, most = 0, 0
    for process in family(root):
        folder = Path("/proc") / str(process)
        try:
            pages = int((folder / "statm").read_text().split()[1])
            most = max(most, len(list((folder / "fd").iterdir())))
        except OSError:
            continue
        resident += pages * os.sysconf("SC_PAGE_SIZE")
    return resident / 1e6, most


def prepare(slides: Path, folder: Path) -> Path:
    """Index and mask a folder; slides without mpp get 1 um/px."""
    index.index([str(slides)], folder / "s.parquet", mpp_overrides=["1.0"])
    mask.mask(folder / "s.parquet", folder / "t.parquet")
    return folder / "t.parquet"


def watch(tissue: Path, seconds: float, workers: int) -> dict[str, float]:
    """Stream for so long."""
    batches = stream.batches(
        tissue, CONFIG, 0, batch_size=64, first_step=0, steps=10**9, workers=workers
    )
    begin = due = time.monotonic()
    samples: list[tuple[float, float, int]] = []
    patches = failed = 0
    for batch in batches:
        patches += len(batch.indices)
        failed += len(batch.failed)
        now = time.monotonic()
        if now >= due:
            samples.append((now - begin, *sample(os.getpid())))
            due = now + EVERY_S
        if now - begin > seconds:
            break
    warm = min(WARM_UP_S, seconds / 4)
    later = [(resident, files) for at, resident, files in samples if at >= warm]
    fifth = max(1, len(later) // 5)
    resident = [megabytes for megabytes, _ in later]
    first, last = (statistics.median(part) for part in (resident[:fifth], resident[-fifth:]))
    return {
        "minutes": seconds / 60,
        "patches": patches,
        "failed": failed,
        "rss_mb": last,
        "rss_growth": last / first,
        "rss_spread": max(resident) / min(resident),
        "most_open_files": max(files for _, files in later),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slides", type=Path, default=SLIDES)
    options = parser.parse_args()
    minutes = 0.5 if options.quick else options.minutes
    with tempfile.TemporaryDirectory() as folder:
        tissue = prepare(options.slides, Path(folder))
        result = watch(tissue, minutes * 60, options.workers)
    result = {name: round(value, 3) for name, value in result.items()}
    if not options.json:
        for name, value in result.items():
            print(f"{name:18}{value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
