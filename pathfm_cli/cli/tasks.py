"""`pathfm tasks`: the catalogue of data sets, their download, and the labels of TP53."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathfm_cli import errors
from pathfm_cli.cli import options, output, progress

if TYPE_CHECKING:
    from pathfm_cli.tasks.datasets import base

TP53 = "tp53"


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="A data set; without it all are listed.")
    ] = None,
    data: options.Data = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch and unpack it.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept-licence", help="You have read its licence and agree.")
    ] = False,
    mirror: Annotated[str | None, typer.Option(help="Fetch the same files from this URL.")] = None,
    partial: options.Partial = False,
    mutations: Annotated[Path | None, typer.Option(help="tp53: a MAF of all genes.")] = None,
    copy_number: Annotated[Path | None, typer.Option(help="tp53: calls by gene.")] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(help="tp53: ready case_id, slide_id, label; repeatable.")
    ] = None,
    slides: Annotated[Path | None, typer.Option(help="tp53: the slides artifact to label.")] = None,
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""List data sets, check or download one, or make the labels of TP53.

    \b
    pathfm tasks pcam --download --accept-licence --data data/pcam
    pathfm tasks tp53 --mutations t.maf.gz --copy-number calls.txt --slides s.parquet -o labels.csv
    """
    sink = output.Sink(json, quiet)
    assays = (mutations, copy_number, labels or None, slides, out)
    if name is None and (any(assays) or data or download):
        raise errors.UsageError("Name the data set.", "pathfm tasks bach --download")
    if any(assays) and name != TP53:
        raise errors.UsageError(f"These options make labels of {TP53}.", f"pathfm tasks {TP53} ...")
    from pathfm_cli.tasks.datasets import catalogue, words

    if name is None:
        facts = [dataset.facts for dataset in catalogue.DATASETS.values()]
        if json:
            return sink.plan({"tasks": [words.values(one) for one in facts]})
        return _print(sink, words.table(list(catalogue.DATASETS.values())))
    dataset = catalogue.find(name)
    if any(assays):
        from pathfm_cli.tasks.datasets import request

        wanted = request.Labels(mutations, copy_number, tuple(labels or ()), slides, out)
        if dry_run:
            return sink.plan(wanted.plan())
        made = wanted.make(overwrite=overwrite)
        for note in made.notes:
            output.note(f"pathfm tasks: {note}")
        return sink.emit(made.record, made.lines, made.follow)
    root = catalogue.locate(name, data)
    if download:
        return _download(dataset, root, mirror, accept, sink, dry_run)
    if data is None and (name == TP53 or not root.is_dir()):
        if json:
            return sink.plan(words.values(dataset.facts))
        here = [] if name == TP53 else [f"  here: {root} is not there"]
        return _print(sink, words.page(dataset.facts) + here)
    return _found(sink, words.found(dataset, root, partial=partial))


def _download(
    dataset: base.Dataset,
    root: Path,
    mirror: str | None,
    accept: bool,
    sink: output.Sink,
    dry_run: bool,
) -> int:
    from pathfm_cli.tasks import download as library
    from pathfm_cli.tasks.datasets import words

    facts = dataset.facts
    resources = library.sources(facts, mirror)
    if dry_run:
        missing = [one.url for one in resources if not library.present(root, one)]
        return sink.plan({"task": facts.name, "licence": facts.licence, "fetch": missing})
    output.note(f"pathfm: {facts.name} is under {facts.licence}: {facts.licence_url}")
    if not accept:
        raise errors.UsageError(
            f"The licence of {facts.name} was not accepted.", facts.hint(root, mirror)
        )
    with progress.track(f"download {facts.name}", quiet=sink.quiet) as report:
        made = library.download(facts, resources, root, report, mirror=mirror)
    if not made:
        output.note(f"pathfm: {root} is up to date")
    return _found(sink, words.found(dataset, root, partial=False))


def _found(sink: output.Sink, found: dict[str, Any]) -> int:
    if sink.quiet:
        sink.line(found["root"])
        return 0
    return sink.plan(found)


def _print(sink: output.Sink, lines: list[str]) -> int:
    for line in lines:
        sink.line(line)
    return 0
