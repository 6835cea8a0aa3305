"""`pretrain`: patches to an encoder, as one resumable run in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, config, disk, errors
from pathfm_cli.data import cohort
from pathfm_cli.pretrain import folder, launch, recipe, share, stop

INPUTS = ("tissue", "patches")
"""Kinds of artifact a run reads: tissue for an endless stream, patches for a fixed set."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """How a run is done here; changes nothing of what is computed but its rounding."""

    processes: int = 0
    """Processes, one per device; 0: one per CUDA device, or one on the CPU."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    accumulate: int = 0
    """Parts that each process takes its share of the batch in, see `share`; 0 chooses."""
    workers: int = 0
    """Processes that read patches, per training process; 0 chooses."""
    patch_cache: Path | None = None
    """Folder on a local disk for the pixels of distinct patches, see `data.held`."""
    nodes: launch.Nodes = launch.ALONE
    """The machines of the run, of which this is one."""
    quiet: bool = False
    """Whether the training processes keep silent unless something is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """What a run takes."""

    parameters: int
    """Of the encoder."""
    share: share.Share
    """Of the batch."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A finished run; `up_to_date` if it had been finished before."""

    record: dict[str, Any]
    up_to_date: bool


def check(
    run: str | os.PathLike[str], settings: recipe.Recipe, machine: Machine, *, overwrite: bool
) -> Size:
    """See, before any input is read, that the run can be done here and its folder is free.

    Raises:
        errors.UsageError: the encoder cannot be built, a device is missing, or the batch does not
            divide by the processes.
        errors.OutputClash: the folder holds something else.
        errors.Unwritable: the patch cache is an address.
        errors.PathfmError: as `origin.check` and `watch.check`.
    """
    from pathfm_cli.pretrain import networks, origin, watch

    if overwrite and machine.nodes.count > 1:
        raise errors.UsageError(
            "With several nodes, one could overwrite what another reads.", f"rm -r {run}"
        )
    if machine.patch_cache is not None:
        disk.refuse_address(machine.patch_cache)
    origin.check(settings)
    folder.refuse(Path(run), _values(settings), overwrite=overwrite)
    split = shared(settings, machine, _world_size(machine))
    watch.check(settings)
    return Size(networks.count(settings), split)


def pretrain(
    source: str | os.PathLike[str],
    run: str | os.PathLike[str],
    settings: recipe.Recipe,
    machine: Machine,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, said: None,
) -> Done:
    """Train an encoder in the folder `run`, through torchrun's API; continue what is unfinished.

    Inside a process that torchrun started this is one of the ranks.

    Args:
        source: a `tissue` or `patches` artifact.
        run: run folder.
        settings: the recipe.
        machine: processes and devices.
        overwrite: replace a run made with other inputs or settings.
        progress: called with steps done, steps in all, and the newest metrics in short.

    Raises:
        errors.OutputClash: the folder holds something else.
        errors.Interrupted: a signal came; the same call goes on from the checkpoint.
    """
    run = Path(run)
    header = identity(source, settings)
    if record := folder.inspect(run, header, overwrite=overwrite):
        return Done(record, up_to_date=True)
    if launch.is_rank():
        rank(source, run, settings, header, machine, overwrite=overwrite)
    else:
        processes = launch.processes(machine.processes, machine.device)
        shared(settings, machine, processes * machine.nodes.count)
        with _resolved(run, header, settings, machine.nodes, overwrite=overwrite) as resolved:
            arguments = worker_arguments(source, run, resolved, machine)
            report = _reporter(run, settings, progress)
            launch.launch(processes, arguments, report, machine.nodes)
    record = artifacts.read_header(run, "checkpoint").record(artifacts.resolve(run))
    return Done(record, up_to_date=False)


def rank(
    source: str | os.PathLike[str],
    run: Path,
    settings: recipe.Recipe,
    header: artifacts.Header,
    machine: Machine,
    *,
    overwrite: bool = False,
) -> None:
    """Be one of the training processes; rank 0 prepares the folder and writes everything."""
    from pathfm_cli.pretrain import book, place, probe, train

    with contextlib.ExitStack() as stack:
        here = stack.enter_context(place.join(machine.device))
        if not here.agree(int(header.id, 16)):
            raise errors.UsageError(
                "The machines were started with different settings or inputs.",
                "the same command on each but for --node-rank",
            )
        job = book.Job(
            Path(source),
            run,
            header,
            settings,
            readers(machine, int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
            shared(settings, machine, here.world_size).parts,
            machine.patch_cache,
        )
        if here.leads:
            stack.enter_context(folder.lock(run))
            folder.prepare(run, header, settings, overwrite=overwrite)
            probe.record(job.source, run / folder.PATCHES, settings)
        here.wait()
        # Until here there is nothing to save: a signal ends the process at once.
        stopping = stack.enter_context(stop.wished())
        train.train(job, here, stopping)
        here.wait()


def identity(source: str | os.PathLike[str], settings: recipe.Recipe) -> artifacts.Header:
    """What the run will be: the header of its checkpoint.

    Raises:
        errors.InputError: `source` cannot be read, is of another kind, or has no usable slide.
    """
    parent = artifacts.read_header(source, *INPUTS)
    cohort.require_usable(parent, source)
    parents = [f"{parent.kind}:{parent.id}"]
    from pathfm_cli.pretrain import origin

    parents += [f"weights:{_digest(path)}" for path in origin.sources(settings)]
    return artifacts.Header(kind="checkpoint", parents=tuple(parents), settings=_values(settings))


def _world_size(machine: Machine) -> int:
    """Processes on all machines."""
    if launch.is_rank():
        return int(os.environ["WORLD_SIZE"])
    return launch.processes(machine.processes, machine.device) * machine.nodes.count


def shared(settings: recipe.Recipe, machine: Machine, processes: int) -> share.Share:
    """How the batch is shared here.

    Raises:
        errors.UsageError: it cannot be shared evenly, or not at all, or a part is too small.
    """
    train = settings.train
    found = share.share(
        train.batch_size, processes, device_batch=train.device_batch, parts=machine.accumulate
    )
    heads = (settings.head, settings.ibot_head or settings.head)
    if any(head.batch_norm for head in heads) and found.at_once < found.batch_size:
        raise errors.UsageError(
            f"head.batch_norm needs the whole batch at once; here it is {found}.",
            "--gpus 1 without accumulation, or --set head.batch_norm=false",
        )
    loss = settings.loss
    if loss.spreads and loss.spread_over == "ranks" and found.parts > 1:
        name = "koleo" if loss.koleo else "kde"
        raise errors.UsageError(
            f"loss.{name} compares all images of a batch; here it is {found}.",
            f"--accumulate 1, --set loss.spread_over=rank, or --set loss.{name}=0.0",
        )
    seen = found.batch_size if loss.spread_over == "ranks" else found.at_once
    if loss.koleo and seen < 2:
        raise errors.UsageError(
            f"loss.koleo compares images, and here it sees one at a time: {found}.",
            f"--set train.batch_size={2 * found.processes * found.parts}, or --set loss.koleo=0.0",
        )
    return found


@contextlib.contextmanager
def _resolved(
    run: Path,
    header: artifacts.Header,
    settings: recipe.Recipe,
    nodes: launch.Nodes,
    *,
    overwrite: bool,
) -> Iterator[Path]:
    """The resolved recipe as a file: in the run folder, which only the first node prepares."""
    if nodes.rank == 0:
        with folder.lock(run):
            folder.prepare(run, header, settings, overwrite=overwrite)
        yield run / folder.CONFIG
        return
    with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch:
        resolved = Path(scratch) / folder.CONFIG
        resolved.write_text(config.dumps(settings), encoding="utf-8")
        yield resolved


def worker_arguments(
    source: str | os.PathLike[str], run: Path, resolved: Path, machine: Machine
) -> list[str]:
    """The command line of `pathfm_cli.pretrain.worker` for this run and its recipe's file."""
    quiet = ["--quiet"] if machine.quiet else []
    options: dict[str, Any] = {
        "recipe": resolved,
        "device": machine.device,
        "accumulate": machine.accumulate,
        "workers": machine.workers,
    }
    if machine.patch_cache is not None:
        options["patch-cache"] = machine.patch_cache
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [os.fspath(source), os.fspath(run), *flags, *quiet]


def _reporter(
    run: Path, settings: recipe.Recipe, progress: Callable[[int, int, str], None]
) -> Callable[[], None]:
    from pathfm_cli.pretrain import metrics

    def report() -> None:
        line = metrics.last_line(run / folder.METRICS)
        progress(int(line.get("step", 0)), settings.train.steps, metrics.said(line))

    return report


def _values(settings: recipe.Recipe) -> dict[str, Any]:
    """What decides the weights, as JSON values: lists for tuples, as they come back from a file."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    for name in recipe.ASIDE:
        del values["train"][name]
    return values


def readers(machine: Machine, local: int) -> int:
    """Reading processes per rank: what was asked for, else, beside a GPU, its share of the cores.

    On the CPU the network needs the cores: a thread reads.

    Args:
        machine: processes and devices.
        local: ranks on this machine.
    """
    from pathfm_cli.model import device as devices

    if machine.workers or devices.pick(machine.device).type != "cuda":
        return machine.workers
    return max(1, (os.cpu_count() or 1) // local - 1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
