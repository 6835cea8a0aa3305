"""`pathfm probe`: how well a simple classifier on frozen embeddings tells classes apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pathfm_cli import errors
from pathfm_cli.cli import encoder, options, output, pipe, progress


def probe(
    embeddings: Annotated[
        str | None, typer.Argument(help="Embeddings with columns label, split or fold.")
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    partial: options.Partial = False,
    model: Annotated[
        str | None, typer.Option(help="With --task: the encoder, as embed takes it.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of a checkpoint file.")] = None,
    precision: options.Precision = "auto",
    protocol: Annotated[str, typer.Option("--protocol", help="Named protocol.")] = "paper",
    runs: Annotated[int, typer.Option("--runs", min=1, max=1000, help="Runs to average.")] = 5,
    train: Annotated[str, typer.Option("--train", help="Split to train on.")] = "train",
    val: Annotated[str, typer.Option("--val", help="Split that chooses the best state.")] = "val",
    test: Annotated[str, typer.Option("--test", help="Split to report.")] = "test",
    select: Annotated[str, typer.Option("--select", help="What chooses: val, test, last.")] = "val",
    method: Annotated[
        str, typer.Option("--method", help="linear, logreg, knn or simpleshot.")
    ] = "linear",
    neighbours: Annotated[int, typer.Option("--neighbours", min=1, help="Votes of knn.")] = 20,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="Train on so many images a class.")
    ] = None,
    folds: Annotated[
        str | None, typer.Option("--folds", help="Cross-validate: a number, or a column's name.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by", help="What intervals resample together, and folds keep: group, slide."
        ),
    ] = "group",
    lr_scales: Annotated[
        str | None, typer.Option("--lr-scales", help="Factors on the rate to show: 0.1,10.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Test the difference to these scores.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Check against published scores: paper.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    r"""Train linear heads or others on embeddings; report balanced accuracy, mean and deviation.

    \b
    pathfm probe e.parquet -o scores/
    pathfm probe --task bach --data data/bach --model kaiko-s16 --reference paper
    pathfm probe e.parquet --method knn --folds 5 --by slide --compare scores/
    pathfm embed --images tiles.csv --model run/ -o e.parquet | pathfm probe --json
    """
    from pathfm_cli.tasks import asked, features, protocols, scores

    config = protocols.Config(
        protocol=protocol,
        runs=runs,
        seed=seed,
        train=train,
        val=val,
        test=test,
        select=select,
        method=method,
        neighbours=neighbours,
        shots=shots,
        folds=asked.folds(folds),
        by=by,
        lr_scales=asked.scales(lr_scales),
    )
    checks = asked.Checks(compare, reference)
    scores.check_free(out, config.settings(), overwrite=overwrite)
    given = [embeddings] if embeddings else []
    sink = output.Sink(as_json, quiet)
    if device != "auto":  # only torch, slow to import, knows which devices there are
        from pathfm_cli.model import device as devices

        devices.pick(device)
    if task:
        if dry_run:
            return _plan_task(task, data, partial, sink)
        how = {"arch": arch, "device": device, "precision": precision}
        path = _embed_task(task, data, partial, given, model, how, quiet)
    elif model or data or arch or partial:
        raise errors.UsageError("--model, --arch, --data, --partial go with --task.", "--task bach")
    else:
        slots = {"embeddings": pipe.Slot(("embeddings",), foreign=True)}
        path = pipe.bind("probe", given, slots, out=out)["embeddings"]
    source = features.open_features(path)
    checks.refuse(source, config)
    from pathfm_cli.model import device as devices
    from pathfm_cli.tasks import probe as library

    if dry_run:
        return sink.plan(library.plan(source, out, config))
    with progress.track("probe", quiet=quiet) as report:
        result = library.probe(
            source, out, config, device=devices.pick(device), overwrite=overwrite, progress=report
        )
    result = checks.judge(result, source, config)
    told = source.incomplete() if task else ()  # the data set's own note said it, and why
    for note in (one for one in result.notes if one not in told):
        output.note(f"pathfm probe: {note}")
    code = sink.emit(result.record, result.lines)
    checks.gate()
    return code


def _plan_task(task: str, data: Path | None, partial: bool, sink: output.Sink) -> int:
    from pathfm_cli.tasks.datasets import catalogue, words

    found = words.found(catalogue.find(task), catalogue.locate(task, data), partial=partial)
    return sink.plan(found)


def _embed_task(
    task: str,
    data: Path | None,
    partial: bool,
    given: list[str],
    model: str | None,
    how: dict[str, Any],
    quiet: bool,
) -> Path:
    """Path of the data set's embeddings by the model, made where they are not there yet."""
    from pathfm_cli.tasks.datasets import catalogue

    opened = catalogue.open_task(task, data, partial=partial, refused=given)
    for sentence in opened.notes:
        output.note(f"pathfm: {sentence}")
    _, spec = encoder.bind("probe", [], {}, model)
    network = encoder.load(spec, **how)
    from pathfm_cli.tasks import cached, embed

    root = catalogue.find(task).place(catalogue.locate(task, data))
    with progress.track("embed", quiet=quiet) as report:
        done = cached.embeddings(opened, network, root, embed.Reading(), report)
    output.failures(done.failures, done.record["rows"], opened.what)
    return Path(done.record["path"])
