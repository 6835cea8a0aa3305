"""Semantic segmentation with a frozen encoder and a light decoder (paper IV-D2).

Random crops train the decoder, overlapping windows cover the test images. Every score comes from
one integer confusion table over all test pixels, and its name says which Dice it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import decoder as decoders
from pathfm_cli.tasks import dice, masks, metrics, scores, segmentation, tokens

Report = Callable[[int, int], None]


def settings(encoder: weights.Encoder, config: segmentation.Config) -> dict[str, Any]:
    """What the `scores` artifact records of how it was made."""
    return {"task": "segment", **dataclasses.asdict(config), "encoder": encoder.settings()}


def segment(
    items: Sequence[masks.Item],
    encoder: weights.Encoder,
    out: Path,
    config: segmentation.Config,
    *,
    overwrite: bool = False,
    progress: Report = lambda done, total: None,
) -> tuple[scores.Result, list[tuple[str, str]]]:
    """Train a decoder on the split train, score the split test, and write the result folder.

    The folder appears whole: label maps, pictures, the decoder, scores as Parquet and JSON.

    Args:
        items: rows of `masks.read_table`.
        encoder: a vision transformer whose input side is `config.size_px`; it stays as it is.
        out: the folder to write.
        config: what to do.
        overwrite: replace a result made with other inputs or settings.
        progress: called with (steps done, steps); a crop, a step and a test image are one each.

    Returns:
        The result, and (id, reason) of images that could not be used.

    Raises:
        errors.InputError: no image of train or of test can be used, or there is no foreground.
        errors.UsageError: labels are no classes, or the encoder has no patch tokens.
        errors.OutputClash: `out` holds something else.
    """
    parents = (f"images:{masks.digest(items)}", f"encoder:{encoder.id}")
    header = artifacts.Header(kind="scores", parents=parents, settings=settings(encoder, config))
    table = out / "scores.parquet"
    if old := artifacts.finished(table, header, overwrite=overwrite):
        return scores.Result(old, ("up to date",), dice.lines(old["metrics"])), _failures(table)
    start = time.perf_counter()
    splits = segmentation.split(items)
    classes = _classes(splits, config.instances)
    advance = _counter(config, len(splits["test"]), progress)
    rows: list[dice.Row] = []
    crops = tokens.cache(_usable(splits["train"], config, rows), config.crops, encoder, advance)
    module = decoders.fit(
        *crops, len(classes), config.decoder, config.training, config.seed, advance
    )
    n_train = len(splits["train"]) - len(rows)
    with _staged(out, header.id) as stage:
        tables = {}
        for item in splits["test"]:
            try:
                whole = masks.read(item, instances=config.instances)
                tables[item.id] = _score(whole, item, encoder, module, config, stage)
            except errors.SlideError as error:
                rows.append(dice.failure(item, str(error)))
            advance(1)
        rows += dice.rows(tables, classes)
        numbers = dice.numbers(rows) | {"n_train": n_train, "n_test": len(tables)}
        numbers |= {"classes": len(classes), "seconds": time.perf_counter() - start}
        with disk.atomic(stage / segmentation.FILES["decoder"]) as temporary:
            temporary.write_bytes(safetensors_torch.save(module.cpu().state_dict()))
        header = dataclasses.replace(header, metrics=numbers, files=segmentation.FILES)
        scores.write(stage, dice.table(rows), header, {"classes": classes})
    record = artifacts.read_header(table).record(table)
    return scores.Result(record, (), dice.lines(numbers)), _failures(table)


def _counter(config: segmentation.Config, images: int, progress: Report) -> Callable[[int], None]:
    """A function that adds to what is done and reports it."""
    total = config.crops + config.training.steps(config.crops) + images
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return advance


def _classes(splits: Mapping[str, Sequence[masks.Item]], instances: bool) -> list[str]:
    """Names of the classes: the numbers up to the largest in a label map of train."""
    known, tested = (max(masks.largest(item) for item in splits[s]) for s in ("train", "test"))
    if not (known and tested):
        empty = "test" if known else "train"
        raise errors.InputError(f"The label maps of {empty} hold no foreground.", "0 is background")
    if instances:
        return ["background", "foreground"]
    if tested > known:
        raise errors.InputError(
            f"A label map of test has the class {tested}; those of train end at {known}.",
            "--instances if these are numbers of objects",
        )
    return ["background", *map(str, range(1, known + 1))]


def _usable(
    items: Sequence[masks.Item], config: segmentation.Config, rows: list[dice.Row]
) -> Iterator[masks.Labelled]:
    """Pass crops on; an image that fails becomes a row."""
    for found in masks.random_crops(
        items, config.crops, config.size_px, config.seed, instances=config.instances
    ):
        if isinstance(found, masks.Labelled):
            yield found
        else:
            rows.append(dice.failure(*found))


def _score(
    whole: masks.Labelled,
    item: masks.Item,
    encoder: weights.Encoder,
    module: decoders.Linear,
    config: segmentation.Config,
    folder: Path,
) -> metrics.Counts:
    """Predict a test image, write its label map and picture, and count its pixels."""
    classes = module.classify.out_features
    predicted = tokens.predict(
        whole.image, encoder, module, classes, config.size_px, config.stride_px
    )
    maps, pictures = (folder / segmentation.FILES[name] for name in ("predictions", "overlays"))
    masks.write_map(maps / item.file_name, predicted)
    masks.write_overlay(pictures / item.file_name, whole, predicted)
    return metrics.confusion(whole.label, predicted, classes)


def _failures(table: Path) -> list[tuple[str, str]]:
    failed = pl.read_parquet(table).filter(pl.col("error").is_not_null())
    return list(failed.select("image", "error").iter_rows())


@contextlib.contextmanager
def _staged(out: Path, name: str) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place on success, whole.

    It is called as the parts of a table are, so that a rerun finds and clears what a kill left.
    """
    out = Path(os.path.abspath(out))
    stage = out.with_name(f"{out.name}.parts-{name}")
    old = stage.with_name(f"{stage.name}.old")
    for leftover in (stage, old):
        shutil.rmtree(leftover, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        if out.exists():
            os.replace(out, old)
        os.replace(stage, out)
    finally:
        for leftover in (stage, old):
            shutil.rmtree(leftover, ignore_errors=True)
