"""`pathfm demo`: the whole chain, as the commands a user would type, on a real slide."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources, util
from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import disk
from pathfm_cli.cli import options, output

PLANNED_MINUTES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One command of the chain: what it is for, and its arguments."""

    title: str
    arguments: tuple[str, ...]


def demo(
    out: options.Out = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the tiny recipe.")] = 60,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""Run index, mask, pretrain, sample, embed and odcorr on a slide that ships with pathfm.

    \b
    pathfm demo -o demo/
    pathfm demo -o demo/ --steps 200
    """
    sink = output.Sink(json=json, quiet=quiet)
    slide = resources.files("pathfm_cli") / "demo_data" / "CMU-1-Small-Region.svs"
    with resources.as_file(slide) as path:
        chain = plan(path, out, steps, plots=util.find_spec("matplotlib") is not None)
        if overwrite:
            chain = [dataclasses.replace(s, arguments=(*s.arguments, "--overwrite")) for s in chain]
        if dry_run:
            return sink.plan({step.title: _typed(step) for step in chain})
        disk.check_place(out / "slides.parquet")
        output.note(f"pathfm demo: {len(chain)} commands, about {PLANNED_MINUTES} minutes")
        records = [_run(step, output.note) for step in chain]
    run = next(record for record in records if record.get("kind") == "checkpoint")
    code = sink.emit(run, _summary(out, records), f"pathfm show {out / 'embeddings.parquet'}")
    if not quiet and not sys.stdout.isatty():
        for line in _summary(out, records):
            output.note(line)
    return code


def plan(slide: Path, out: Path, steps: int, *, plots: bool) -> list[Step]:
    """The commands of the demo, in order; the loss curve only where matplotlib is installed."""
    slides, tissue, run = out / "slides.parquet", out / "tissue.parquet", out / "run"
    patches, embeddings, pictures = (
        out / "patches.parquet",
        out / "embeddings.parquet",
        out / "pictures",
    )
    chain = [
        ("read the slide's tile table", "index", slide, "-o", slides),
        ("find the tissue", "mask", slides, "-o", tissue, "--preview", pictures)
        + ("--geojson", out / "geojson"),
        ("train a tiny DINO from scratch, reading patches from the slide", "pretrain", tissue)
        + ("--recipe", "tiny", "--set", f"train.steps={steps}", "-o", run),
        ("lay a grid over the tissue", "sample", tissue, "--grid", "--mpp", "0.5", "--size", "112")
        + ("-o", patches, "--preview", pictures / "patches.png"),
        ("embed the patches", "embed", patches, "--model", run, "-o", embeddings),
        ("measure the embeddings", "odcorr", embeddings, "--json"),
        ("draw them", "show", embeddings, "--overwrite", "--picture", pictures / "pca.png"),
    ]
    if plots:
        curve = pictures / "loss.png"
        chain.append(("draw the loss", "show", run, "--overwrite", "--picture", curve))
    return [Step(str(title), tuple(map(str, arguments))) for title, *arguments in chain]


def _run(step: Step, say: Callable[[str], None]) -> dict[str, object]:
    """Run one command with its stderr visible; the last line of its stdout is its record."""
    say(f"\n# {step.title}\n$ {_typed(step)}")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pathfm_cli", *step.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        say(f"pathfm demo: stopped at `{_typed(step)}`; the same command goes on from here")
        raise typer.Exit(done.returncode)
    say(f"  {time.monotonic() - start:.1f} s")
    lines = done.stdout.splitlines()
    return jsonlib.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def _summary(out: Path, records: Sequence[dict[str, object]]) -> list[str]:
    lines = ["artifacts:"]
    lines += [f"  {record['kind']:<11}{record['path']}" for record in records if "path" in record]
    lines += ["pictures:"]
    lines += [f"  {path}" for path in sorted((out / "pictures").glob("*.png"))]
    for record in records:
        metrics = record.get("metrics")
        if isinstance(metrics, dict) and "odcorr" in metrics:
            lines.append(
                f"ODCorr {metrics['odcorr']:.3f} (floor {metrics['floor']:.3f}), "
                f"RankMe {metrics['rankme']:.1f} of {metrics['k']:.0f}"
            )
    return lines


def _typed(step: Step) -> str:
    return f"pathfm {shlex.join(step.arguments)}"
