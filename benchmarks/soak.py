"""A tiny pretraining that is killed, stopped and fed badly, over and over: is it still the same?

python benchmarks/soak.py [--minutes 30] [--quick] [--json] [--seed 0] [--keep FOLDER]

One run is trained in peace: the reference. Then the same command is started again and again on one
run folder, its slide behind a web server that fails (503, resets, bodies that end early), read by a
thread or by two processes; after a random part of its work it gets SIGKILL or SIGTERM. Each run
that reaches its end must have the reference's weights, bit for bit; then another one begins.
Meanwhile open files, threads, processes and memory of the whole tree are sampled, and afterwards no
process may be left.

Growth is told as the median of the last third of all lives against that of the first third,
each sampled once it had trained for a while; a leak within a life shows as `rss_slope_mb_per_min`
of one that is left in peace for a third of the time. Other weights, an exit code that is not
documented, a process left over, and (from 25 minutes on) growth above `MOST` end in exit 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from safetensors import numpy as safetensors

import pathfm_cli

DEMO = Path(pathfm_cli.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
FAULTS = ("--fail", "0.05", "--reset", "0.02", "--cut", "0.02")
STEPS = 60
SETTINGS = {
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.checkpoint_every": 3,
    "train.probe_patches": 16,
    "train.watch_every": 0,
    "data.size_px": 64,
    "crops.global_size_px": 48,
    "crops.local_size_px": 32,
    "crops.local_count": 2,
    "model.embed_dim": 64,
    "model.depth": 2,
}
RESULT = "teacher.safetensors"
READERS = (0, 2)
"""Reading processes of a life: a thread, or two."""
ENDS = {"left": {0}, "SIGKILL": {0, -9}, "SIGTERM": {0, 75}}
"""Exit codes of lives by what was sent; SIGTERM while Python ends a finished run: -15."""
MOST = {
    **{f"{name}_slope_per_min": 0.5 for name in ("files", "threads", "processes")},
    "rss_mb_slope_per_min": 1.0,
}
"""What is no growth within a life: half a thing, or 1 MB, a minute.

Between lives nothing can grow but what is left over, which ends the soak at once.
"""
JUDGED_MIN = 25.0
SETTLED_S = 2.0
"""A life is sampled from so long after its first new step on."""


@dataclasses.dataclass
class Life:
    """One start of the command."""

    end: str
    code: int
    seconds: float
    worked_s: float
    """From its first new step on."""
    readers: int
    samples: list[dict[str, float]]


def pathfm(*arguments: object) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "pathfm_cli", *map(str, arguments)]


def call(*arguments: object) -> None:
    """Run a command that must succeed."""
    subprocess.run(pathfm(*arguments), check=True, stdin=subprocess.DEVNULL, capture_output=True)


@contextlib.contextmanager
def served(folder: Path, faults: tuple[str, ...]) -> Iterator[str]:
    """A web server of a folder."""
    script = Path(__file__).with_name("range_server.py")
    command = [sys.executable, str(script), str(folder), *faults]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def prepare(folder: Path, address: str) -> Path:
    """Index and mask the demo slide behind the web server."""
    call("index", f"{address}/{DEMO.name}", "-o", folder / "s.parquet")
    call("mask", folder / "s.parquet", "--method", "otsu", "-o", folder / "t.parquet")
    return folder / "t.parquet"


def training(tissue: Path, run: Path, steps: int = STEPS, readers: int = 0) -> list[str]:
    """The command line of a run; the number of readers changes nothing of it."""
    chosen = SETTINGS | {"train.steps": steps}
    settings = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]
    flags = ["--recipe", "tiny", "--procs", "1", "--device", "cpu", "-q", "--workers", readers]
    flags += ["-o", run]
    return pathfm("pretrain", tissue, *flags, *settings)


def steps_done(run: Path) -> int:
    """Lines of the run's metrics."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def sample(process: psutil.Popen) -> dict[str, float]:
    """Open files, threads, processes, and memory (MB) of a process with all below it."""
    total: collections.Counter[str] = collections.Counter()
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error), one.oneshot():
            total["files"] += one.num_fds()
            total["threads"] += one.num_threads()
            total["rss_mb"] += one.memory_info().rss / 1e6
            total["processes"] += 1
    return dict(total)


def live(
    command: list[str], run: Path, until_s: float, how: signal.Signals | None, readers: int = 0
) -> Life:
    """Start the command; `until_s` after its first new step send a signal, unless it has ended."""
    began, before = time.monotonic(), steps_done(run)
    process = psutil.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    samples: list[dict[str, float]] = []
    first = sent = None
    while process.poll() is None:
        now = time.monotonic()
        if first is None and steps_done(run) > before:
            first = now
        if first is not None and now - first > SETTLED_S and sent is None:
            samples.append({"at_s": now - began, **sample(process)})
        if how and sent is None and first is not None and now - first > until_s:
            sent = how
            process.send_signal(how)
        time.sleep(0.25)
    said = process.stderr.read().decode()
    process.stderr.close()
    if "Traceback" in said:
        raise SystemExit(f"a traceback:\n{said}")
    ended = time.monotonic()
    return Life(
        end=sent.name if sent else "left",
        code=process.returncode,
        seconds=ended - began,
        worked_s=ended - (first or ended),
        readers=readers,
        samples=samples,
    )


def strays(run: Path) -> list[int]:
    """Processes that still train in the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run) in " ".join(process.cmdline()) and process.pid != psutil.Process().pid:
                found.append(process.pid)
    return found


def wait_for_quiet(run: Path, patience_s: float = 60) -> float:
    """Seconds until the last process of a run is gone.

    Raises:
        SystemExit: one stays.
    """
    began = time.monotonic()
    while strays(run):
        if time.monotonic() - began > patience_s:
            raise SystemExit(f"processes of a killed run are still there: {strays(run)}")
        time.sleep(0.1)
    return time.monotonic() - began


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    left, right = (safetensors.load_file(run / RESULT) for run in (one, other))
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def growth(lives: list[Life], readers: int, name: str) -> float:
    """Median of the last third of the lives over that of the first third.

    Of a life its own median counts: its peak may have met a child between fork and exec, which for
    that moment has all of its parent's files. Told, not judged: reading processes end when the last
    batch is read, and of a short life there are few samples.
    """
    each = [
        statistics.median(sample[name] for sample in life.samples)
        for life in lives
        if life.readers == readers and len(life.samples) > 2
    ]
    third = max(1, len(each) // 3)
    return statistics.median(each[-third:]) / statistics.median(each[:third]) if each else 1.0


def expected(life: Life, run: Path) -> bool:
    """Whether a life ended as is documented."""
    late = life.end == "SIGTERM" and life.code == -15 and (run / RESULT).exists()
    return late or life.code in ENDS[life.end]


def wrong(found: dict[str, object], minutes: float) -> list[str]:
    """What is not as it should be."""
    judged = MOST if minutes >= JUDGED_MIN else {}
    grown = [f"{k} is {found[k]}, above {v}" for k, v in judged.items() if found[k] > v]
    return [*grown, *(f"a life ended as {end}" for end in found["undocumented"])]


def slope(samples: list[dict[str, float]], name: str) -> float:
    """Least-squares growth per minute over the second half of one life."""
    half = samples[len(samples) // 2 :]
    at = np.array([s["at_s"] for s in half]) / 60
    return float(np.polyfit(at, [s[name] for s in half], 1)[0])


def soak(folder: Path, minutes: float, seed: int) -> dict[str, object]:
    """All of it; see the module."""
    chance = random.Random(seed)
    shown = folder / "shown"
    shown.mkdir(parents=True)
    (shown / DEMO.name).symlink_to(DEMO)
    with served(shown, FAULTS) as address:
        tissue = prepare(folder, address)
        began = time.monotonic()
        peace = folder / "reference"
        calm = live(training(tissue, peace), peace, 0, None)
        if calm.code:
            raise SystemExit("the reference run failed")
        print(f"reference: {STEPS} steps in {calm.worked_s:.1f} of {calm.seconds:.1f} s")
        # One long life, to see growth within a process; a third of the time.
        long = folder / "long"
        quiet = live(training(tissue, long, 10**6), long, minutes * 20, signal.SIGTERM)
        print(f"one life of {quiet.seconds:.0f} s, exit {quiet.code}: {steps_done(long)} steps")
        lives: list[Life] = []
        ends: collections.Counter[str] = collections.Counter()
        finished, longest_s, undocumented = 0, 0.0, []
        run = folder / "run-0"
        while time.monotonic() - began < minutes * 60 or not finished:
            how = chance.choice((signal.SIGKILL, signal.SIGTERM))
            readers, until_s = chance.choice(READERS), chance.uniform(0, calm.worked_s)
            life = live(training(tissue, run, STEPS, readers), run, until_s, how, readers)
            lives.append(life)
            if not expected(life, run):
                undocumented.append(f"{life.end}: exit {life.code}")
            ends[f"{life.end}: exit {life.code}"] += 1
            longest_s = max(longest_s, wait_for_quiet(run))
            if life.code == 0:
                if not same(run, peace):
                    raise SystemExit(f"{run} ended with other weights than {peace}")
                finished += 1
                run = folder / f"run-{finished}"
    names = ("files", "threads", "processes", "rss_mb")
    return {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "lives": len(lives),
        "ends": dict(sorted(ends.items())),
        "undocumented": undocumented,
        "finished_runs": finished,
        "same_weights": finished,
        "longest_stray_s": round(longest_s, 1),
        **{f"{name}_growth": round(growth(lives, 0, name), 3) for name in names},
        **{f"{name}_growth_2_readers": round(growth(lives, 2, name), 3) for name in names},
        **{f"{name}_slope_per_min": round(slope(quiet.samples, name), 3) for name in names},
        "steps_in_one_life": steps_done(long),
        "exit_of_one_life": quiet.code,
    }


def main() -> None:
    """Parse, soak, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quick", action="store_true", help="one minute")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    asked = parser.parse_args()
    minutes = 1.0 if asked.quick else asked.minutes
    with contextlib.ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="soak-")
        folder = asked.keep or Path(stack.enter_context(place))
        found = soak(folder, minutes, asked.seed)
    for name, value in found.items():
        print(f"{name}: {value}")
    if asked.json:
        print(json.dumps(found))
    if faults := wrong(found, minutes):
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    main()
