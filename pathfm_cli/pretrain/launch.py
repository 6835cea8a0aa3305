"""Start the training processes through torchrun's API and pass on how they ended."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pathfm_cli import errors
from pathfm_cli.pretrain import meeting, stop

WORKER = "pathfm_cli.pretrain.worker"
ERROR_FILE = "PATHFM_ERROR_FILE"
"""Environment variable: where a training process leaves a known error for the launcher."""
_REPORT_EVERY_S = 0.5
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """The machines of a run: on each, one launcher is started with the same arguments but `rank`.

    They share the run folder and the input.
    """

    count: int = 1
    rank: int = 0
    """Number of this machine; 0 is the one that `endpoint` names."""
    endpoint: str = ""
    """HOST:PORT where the machines meet."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise errors.UsageError(
                f"Node {self.rank} of {self.count} is none.", f"--node-rank 0 to {self.count - 1}"
            )
        host, _, port = self.endpoint.rpartition(":")
        known = host and port.isdecimal() and 0 < int(port) < 1 << 16
        if self.count > 1 and not known:
            raise errors.UsageError(
                f"{self.count} nodes need a place to meet, with a port from 1 to 65535.",
                "--rdzv-endpoint HOST:29500",
            )


ALONE = Nodes()
"""One machine."""


def is_rank() -> bool:
    """Whether torchrun started this very process."""
    return "RANK" in os.environ


def leads() -> bool:
    """Whether this process is rank 0, or alone."""
    return os.environ.get("RANK", "0") == "0"


def become_rank(*, quiet: bool) -> None:
    """Set up this process as one that torchrun started: what it logs, and that SIGINT ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.basicConfig(stream=sys.stderr, format="pathfm: %(message)s")
    if leads() and not quiet:
        logging.getLogger("pathfm").setLevel(logging.INFO)


def processes(wanted: int, device: str) -> int:
    """How many processes to start: `wanted`, or for 0 one per CUDA device, or one.

    Raises:
        errors.UsageError: more processes than CUDA devices, or a device this machine has not.
    """
    import torch

    from pathfm_cli.model import device as devices

    picked = devices.pick(device)
    if picked.type == "mps" and wanted > 1:
        raise errors.UsageError("One process uses MPS.", "--gpus 1")
    if picked.type != "cuda":
        return wanted or 1
    there = 1 if picked.index is not None else torch.cuda.device_count()
    if wanted > there:
        raise errors.UsageError(
            f"{wanted} processes need as many GPUs; here: {there}.", f"--gpus {there}"
        )
    return wanted or there


def launch(
    count: int, arguments: Sequence[str], report: Callable[[], None], nodes: Nodes = ALONE
) -> None:
    """Run `count` training processes to their end.

    Workers get no stdin and write to our stderr only. A signal is handed on to them; they save a
    checkpoint and leave.

    Args:
        count: processes on this machine.
        arguments: command line of `WORKER`.
        report: called twice a second.
        nodes: the machines of the run, of which this is one.

    Raises:
        errors.Interrupted: a signal stopped them; one that comes before all machines are there may
            end this process instead, with the same words and exit code.
        errors.PathfmError: what a worker raised, that one died, or that the machines did not meet.
    """
    from torch import distributed
    from torch.distributed.elastic import multiprocessing
    from torch.distributed.elastic.multiprocessing import errors as elastic_errors
    from torch.distributed.launcher import api

    from pathfm_cli.pretrain import place

    patience = place.patience()
    late_s = meeting.latest_s(patience.total_seconds())
    late = meeting.missed(nodes.count, nodes.endpoint, f"nothing has begun after {late_s:.0f} s")
    _silence("torch.distributed.elastic")
    with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch, _detached(), _every(report):
        file = Path(scratch) / "error.json"
        with environment(count, file), meeting.stoppable(Path(scratch), late_s, late):
            run = api.elastic_launch(_config(count, scratch, nodes, patience), sys.executable)
            try:
                if nodes.rank:
                    meeting.reach(nodes.endpoint, patience.total_seconds())
                run("-m", WORKER, *arguments)
            except multiprocessing.SignalException as error:
                raise _interrupted(file) from error
            except elastic_errors.ChildFailedError as error:
                raise _failure(file, error) from error
            except (distributed.DistError, OSError) as error:
                raise meeting.missed(nodes.count, nodes.endpoint, str(error)) from error
    report()


def _silence(package: str) -> None:
    """Mute loggers that each have a level of their own; what they say is raised as an error too."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(package):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _config(count: int, scratch: str, nodes: Nodes, patience: datetime.timedelta) -> Any:
    from torch.distributed.elastic import multiprocessing
    from torch.distributed.launcher import api

    options: dict[str, Any] = {}
    known = api.LaunchConfig.__dataclass_fields__
    # Older releases of torch have neither; they read the signals from the environment.
    if "signals_to_handle" in known:
        options["signals_to_handle"] = _SIGNALS
    if "shutdown_timeout" in known:
        options["shutdown_timeout"] = stop.SHUTDOWN_S
    if nodes.count == 1:
        options["local_addr"] = "127.0.0.1"
    return api.LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=count,
        logs_specs=multiprocessing.DefaultLogsSpecs(log_dir=scratch),
        run_id="pathfm",
        rdzv_backend="static",
        rdzv_endpoint=nodes.endpoint or f"127.0.0.1:{_free_port()}",
        rdzv_configs={"rank": nodes.rank, "timeout": math.ceil(patience.total_seconds())},
        max_restarts=0,
        monitor_interval=0.1,
        **options,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def environment(count: int, error_file: Path) -> Iterator[None]:
    """Set what the workers inherit; threads are shared out unless somebody has chosen already."""
    threads = max(1, (os.cpu_count() or 1) // count)
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Threads that spin while they wait make a run several times slower when others use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _SIGNALS
    os.environ[ERROR_FILE] = str(error_file)
    os.environ[stop.LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Point stdin at /dev/null and stdout at stderr, for what is started meanwhile.

    torchrun hands both down to all ranks; a shell loop around us would lose its list, a pipe
    behind us would get their words.
    """
    with contextlib.ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, null)
        for descriptor, target in ((0, null), (1, 2)):
            try:
                saved = os.dup(descriptor)
            except OSError:
                continue
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(target, descriptor)
        yield


@contextlib.contextmanager
def _every(report: Callable[[], None]) -> Iterator[None]:
    """Call `report` from a thread until the block ends."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(_REPORT_EVERY_S):
            report()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def leave(code: int) -> NoReturn:
    """End this rank at once, with its files written and its ranks told.

    Where Python takes a process group of gloo apart after a signal, its destructor can wait for
    ever for a thread that waits for the interpreter.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_error(error: errors.PathfmError) -> None:
    """Keep a worker's error for its launcher, if there is one; the first of several counts."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return
    document = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
    with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        json.dump(document, file)


def left(file: Path) -> errors.PathfmError | None:
    """The error that a process left by `leave_error`, if any."""
    if not file.exists():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    kind = getattr(errors, document["type"], errors.PathfmError)
    error: errors.PathfmError = kind.__new__(kind)
    errors.PathfmError.__init__(error, document["message"], document["hint"])
    return error


def _interrupted(file: Path) -> errors.PathfmError:
    return left(file) or errors.Interrupted(
        "Stopped by a signal before a new checkpoint.", "run the same command again to go on"
    )


def _failure(file: Path, error: Any) -> errors.PathfmError:
    known = left(file)
    if known is not None:
        return known
    rank, first = error.get_first_failure()
    return errors.PathfmError(
        f"Training process {rank} ended with exit code {first.exitcode}; see above.",
        "run the same command again to go on from the last checkpoint",
    )
