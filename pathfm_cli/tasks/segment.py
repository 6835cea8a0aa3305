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

from pathfm_cli import artifacts, errors
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
    steps = config.training.steps(config.crops)
    total = config.crops + steps + len(splits["test"])
    rows: list[dice.Row] = []
    crops = tokens.cache(
        _usable(splits["train"], config, rows), config.crops, encoder, lambda n: progress(n, total)
    )
    module = decoders.fit(
        *crops,
        len(classes),
        config.decoder,
        config.training,
        config.seed,
        lambda n, _: progress(config.crops + n, total),
    )
    n_train = len(splits["train"]) - len(rows)
    with _staged(out, header.id) as stage:
        tables = _test(
            splits["test"],
            encoder,
            module,
            config,
            len(classes),
            stage,
            rows,
            lambda n: progress(config.crops + steps + n, total),
        )
        rows += dice.rows(tables, classes)
        numbers = dice.numbers(rows) | {"n_train": n_train, "n_test": len(tables)}
        numbers |= {"classes": len(classes), "seconds": time.perf_counter() - start}
        with artifacts.atomic(stage / segmentation.FILES["decoder"]) as temporary:
            temporary.write_bytes(safetensors_torch.save(module.cpu().state_dict()))
        header = dataclasses.replace(header, metrics=numbers, files=segmentation.FILES)
        scores.write(stage, dice.table(rows), header, {"classes": classes})
    record = artifacts.read_header(table).record(table)
    return scores.Result(record, (), dice.lines(numbers)), _failures(table)


def _classes(splits: Mapping[str, Sequence[masks.Item]], instances: bool) -> list[str]:
    """Names of the classes: the numbers up to the largest in a label map of train."""
    if instances:
        return ["background", "foreground"]
    known = max(masks.largest(item) for item in splits["train"])
    for item in splits["test"]:
        if (found := masks.largest(item)) > known:
            raise errors.InputError(
                f"{item.label} has the class {found}; those of train end at {known}.",
                "--instances if these are numbers of objects",
            )
    if known == 0:
        raise errors.InputError("The label maps of train hold no foreground.", "0 is background")
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


def _test(
    items: Sequence[masks.Item],
    encoder: weights.Encoder,
    module: decoders.Linear,
    config: segmentation.Config,
    classes: int,
    folder: Path,
    rows: list[dice.Row],
    progress: Callable[[int], None],
) -> dict[str, metrics.Counts]:
    """Predict and draw every test image; confusion table by id, failures into `rows`."""
    tables = {}
    for number, item in enumerate(items):
        try:
            whole = masks.read(item, instances=config.instances)
            predicted = tokens.predict(
                whole.image, encoder, module, classes, config.size_px, config.stride_px
            )
        except errors.SlideError as error:
            rows.append(dice.failure(item, str(error)))
            continue
        tables[item.id] = metrics.confusion(whole.label, predicted, classes)
        masks.write_map(folder / segmentation.FILES["predictions"] / item.file_name, predicted)
        masks.write_overlay(
            folder / segmentation.FILES["overlays"] / item.file_name, whole, predicted
        )
        progress(number + 1)
    if not tables:
        raise errors.InputError("No image of test can be used.", "look at the paths in the table")
    return tables


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
