"""Patches and indexes over a network, ours against tiffslide over fsspec.

python benchmarks/remote.py [--quick] [--json] [--latency-ms 30]

A web server in another process of this machine answers byte ranges after a delay (range_server.py).
256 px patches at level 0 at random places of a large slide (`made_slide`), 64 patches in flight:
ours in batches with two decoding threads, tiffslide with 64 threads on one slide, as it is used
with fsspec. Processor time per patch is compared with our reader on the same file on
disk, in alternating rounds of which the best count. Then an index of links to real slides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import made_slide

from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid, remote

PATCH_PX = 256
IN_FLIGHT = 64
"""Patches in flight at once, of either reader."""
BATCH = 32
"""Ours are read in batches; the next one is on its way while one is decoded."""
ROUNDS = 16
"""Many short rounds: on a busy machine some of them are quiet for both readers."""
NAME = "made.svs"


@contextlib.contextmanager
def served(folder: Path, latency_ms: float) -> Iterator[str]:
    """Address of a web server of a folder."""
    script = Path(__file__).with_name("range_server.py")
    command = [sys.executable, str(script), str(folder), "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def counts(address: str) -> dict[str, int]:
    """What the server has served so far."""
    with urllib.request.urlopen(f"{address}/.counts") as answer:  # noqa: S310 - our own server
        found: dict[str, int] = json.load(answer)
    return found


class Ours:
    """Our reader on one slide."""

    def __init__(self, uri: str, out: Path) -> None:
        index.index([uri], out)
        opened = cohort.open_cohort(out)
        self.reader, (self.slide,) = opened.reader, opened.slides
        self.pool = futures.ThreadPoolExecutor(2)

    def __call__(self, places: list[tuple[int, int]]) -> tuple[float, float]:
        """Read all; wall and processor seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        wanted = [pyramid.Request(self.slide, x, y, self.slide.mpp, PATCH_PX) for x, y in places]
        batches = [wanted[begin : begin + BATCH] for begin in range(0, len(wanted), BATCH)]
        self.reader.announce(batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            self.reader.announce(following)
            _, failures = self.reader.read_patches(batch, self.pool, announced=True)
            assert not failures
        return time.perf_counter() - wall, time.process_time() - cpu


def patches(folder: Path, address: str, count: int, side: int) -> dict[str, float]:
    """Ours, remote against local."""
    chosen = random.Random(0)
    places = [
        (chosen.randrange(side - PATCH_PX), chosen.randrange(side - PATCH_PX)) for _ in range(count)
    ]
    local = Ours(str(folder / NAME), folder / "local.parquet")
    web = Ours(f"{address}/{NAME}", folder / "web.parquet")
    for reader in (local, web):
        reader(places[:IN_FLIGHT])
    before = remote.counts.copy()
    rounds = [(local(places), web(places)) for _ in range(ROUNDS)]
    wall = min(one[0] for _, one in rounds)
    local_cpu = min(one[1] for one, _ in rounds)
    web_cpu = min(one[1] for _, one in rounds)
    total = ROUNDS * count
    return {
        "patches_per_s": count / wall,
        "cpu_vs_local": web_cpu / local_cpu,
        "cpu_ms_per_patch": web_cpu / count * 1e3,
        "local_cpu_ms_per_patch": local_cpu / count * 1e3,
        "kb_per_patch": (remote.counts["bytes"] - before["bytes"]) / total / 1e3,
        "requests_per_patch": (remote.counts["requests"] - before["requests"]) / total,
    }


def tiffslide_patches(address: str, count: int, side: int) -> dict[str, float]:
    """The peer, its slide opened before the clock starts; the better of two rounds."""
    import tiffslide

    chosen = random.Random(1)
    slide = tiffslide.TiffSlide(f"{address}/{NAME}")

    def patch(_: int) -> None:
        x, y = chosen.randrange(side - PATCH_PX), chosen.randrange(side - PATCH_PX)
        slide.read_region((x, y), 0, (PATCH_PX, PATCH_PX), as_array=True)

    before = counts(address)["bytes"]
    rounds = []
    with futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
        for _ in range(2):
            start = time.perf_counter()
            list(pool.map(patch, range(count)))
            rounds.append(time.perf_counter() - start)
    wall = min(rounds)
    read = (counts(address)["bytes"] - before) / 2
    return {
        "tiffslide_patches_per_s": count / wall,
        "tiffslide_kb_per_patch": read / count / 1e3,
    }


def indexed(folder: Path, address: str, slides: int) -> dict[str, float]:
    """Slides per second of an index of links to real slides."""
    real = sorted(
        path for path in made_slide.SLIDE.parent.iterdir() if path.suffix in (".svs", ".tif")
    )
    (folder / "links").mkdir()
    lines = ["uri"]
    for number in range(slides):
        path = real[number % len(real)]
        name = f"{number:04d}{''.join(path.suffixes[-2:])}"
        (folder / "links" / name).symlink_to(path)
        lines.append(f"{address}/links/{name}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    before = counts(address)
    start = time.perf_counter()
    done = index.index([str(folder / "list.csv")], folder / "all.parquet", mpp_overrides=["0.25"])
    wall = time.perf_counter() - start
    after = counts(address)
    assert done.record["rows"] == slides and not done.record["failed"]
    requests = sum(after[name] - before.get(name, 0) for name in ("GET", "HEAD"))
    return {
        "index_slides_per_s": slides / wall,
        "index_requests_per_slide": requests / slides,
        "index_kb_per_slide": (after["bytes"] - before["bytes"]) / slides / 1e3,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--latency-ms", type=float, default=30)
    options = parser.parse_args()
    side = 12_000 if options.quick else 40_000
    with tempfile.TemporaryDirectory() as name, served(Path(name), options.latency_ms) as address:
        folder = Path(name)
        made_slide.build(folder / NAME, side)
        found = patches(folder, address, 256 if options.quick else 512, side)
        try:
            found |= tiffslide_patches(address, 64 if options.quick else 128, side)
            found["vs_tiffslide"] = found["patches_per_s"] / found["tiffslide_patches_per_s"]
        except ImportError as error:
            print(f"tiffslide over fsspec is absent ({error}): not compared")
        found |= indexed(folder, address, 200 if options.quick else 1000)
    found["latency_ms"] = options.latency_ms
    for key, value in found.items():
        print(f"{key:28} {value:10.2f}")
    if options.json:
        print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
