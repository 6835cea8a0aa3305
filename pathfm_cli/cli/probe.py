"""`pathfm probe`: how well a linear layer on frozen embeddings tells classes apart."""

from __future__ import annotations

from typing import Annotated

import typer

from pathfm_cli.cli import options, output, pipe, progress


def probe(
    embeddings: Annotated[
        str | None, typer.Argument(help="Embeddings with the columns label and split.")
    ] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="Named protocol.")] = "paper",
    runs: Annotated[int, typer.Option("--runs", min=1, max=1000, help="Runs to average.")] = 5,
    train: Annotated[str, typer.Option("--train", help="Split to train on.")] = "train",
    val: Annotated[str, typer.Option("--val", help="Split that chooses the best state.")] = "val",
    test: Annotated[str, typer.Option("--test", help="Split to report.")] = "test",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    r"""Train linear heads on embeddings and report balanced accuracy, mean and deviation.

    \b
    pathfm probe e.parquet -o scores/
    pathfm embed --images tiles.csv --model run/ -o e.parquet | pathfm probe --json
    """
    from pathfm_cli.tasks import features, protocols, scores

    config = protocols.Config(
        protocol=protocol, runs=runs, seed=seed, train=train, val=val, test=test
    )
    scores.check_free(out, config.settings(), overwrite=overwrite)
    given = [embeddings] if embeddings else []
    slots = {"embeddings": pipe.Slot(("embeddings",), foreign=True)}
    if device != "auto":
        _check_device(device)
    source = features.open_features(pipe.bind("probe", given, slots, out=out)["embeddings"])
    from pathfm_cli.model import device as devices
    from pathfm_cli.tasks import probe as task

    sink = output.Sink(as_json, quiet)
    if dry_run:
        return sink.plan(task.plan(source, out, config))
    with progress.track("probe", quiet=quiet) as report:
        result = task.probe(
            source, out, config, device=devices.pick(device), overwrite=overwrite, progress=report
        )
    for note in result.notes:
        output.note(f"pathfm probe: {note}")
    return sink.emit(result.record, result.lines)


def _check_device(name: str) -> None:
    """Only torch, slow to import, knows which devices there are."""
    from pathfm_cli.model import device as devices

    devices.pick(name)
