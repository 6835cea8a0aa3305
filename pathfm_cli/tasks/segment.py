"""Semantic segmentation with a frozen encoder and a light decoder (paper IV-D2).

Random crops train the decoder, overlapping windows cover the test images. Every score comes from
one integer confusion table over all test pixels, and its name says which Dice it is.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import (
    bootstrap,
    convergence,
    dice,
    labelmaps,
    masks,
    metrics,
    overlays,
    scores,
    segmentation,
    staging,
    tokens,
)

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
    """Train decoders on the split train, score the split test, and write the result folder.

    The folder appears whole: label maps, pictures, the decoders, scores as Parquet and JSON.

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
        errors.Unwritable: no folder can be made there; nothing was trained.
        errors.PathfmError: runs were to converge and none did.
    """
    parents = (f"images:{masks.digest(items)}", f"encoder:{encoder.id}")
    header = artifacts.Header(kind="scores", parents=parents, settings=settings(encoder, config))
    table = out / "scores.parquet"
    old = artifacts.finished(table, header, overwrite=overwrite)
    # What someone removed is made again.
    if old and all((out / name).exists() for name in segmentation.NAMES):
        return scores.Result(old, ("up to date",), dice.lines(old["metrics"])), _failures(table)
    splits = segmentation.split(items)
    staging.check(out, header.id)
    classes = _classes(splits, config)
    advance = _counter(config, len(splits["test"]), progress)
    rows: list[dice.Row] = []
    clock = _Clock(encoder.device)
    usable = _usable(splits["train"], config, rows)
    crops = tokens.gather(usable, config.crops, encoder, config.features, advance)
    clock.done("encode", len(crops))
    found = list(convergence.attempts(crops, len(classes), config, advance))
    clock.done("train", len(crops) * sum(len(one.losses) for one in found))
    kept = _kept(found, config)
    numbers: dict[str, float] = {"n_train": len(splits["train"]) - len(rows)}
    with staging.staged(out, header.id) as stage:
        judge = functools.partial(_score, encoder, found, kept[0], config, len(classes), stage)
        tables = _test(splits["test"], judge, rows, advance)
        clock.done("window", sum(map(len, tables.windows.values())))
        rows += dice.rows(tables, classes, kept, config.seed) + _training_rows(found)
        numbers |= {"n_test": len(tables.stitched), "classes": len(classes), "runs": len(kept)}
        numbers |= {"attempts": len(found), "converged": sum(one.converged for one in found)}
        numbers |= dice.numbers(rows) | clock.numbers()
        _save_decoders(stage / segmentation.FILES["decoder"], found, kept)
        header = dataclasses.replace(header, metrics=numbers, files=segmentation.FILES)
        notes = _notes(found, kept, config, crops)
        document = _document(classes, found, kept, tables, notes)
        scores.write(stage, dice.table(rows), header, document)
    record = artifacts.read_header(table).record(table)
    lines = [*dice.lines(numbers), *_by_run(found, kept, rows), *clock.lines()]
    return scores.Result(record, notes, lines), _failures(table)


def _test(
    items: Sequence[masks.Item],
    judge: Callable[[masks.Item], tuple[metrics.Counts, metrics.Counts]],
    rows: list[dice.Row],
    advance: Callable[[int], None],
) -> dice.Tables:
    """Count the pixels of every test image; an image that fails becomes a row."""
    tables = dice.Tables({}, {})
    for item in items:
        try:
            tables.stitched[item.id], tables.windows[item.id] = judge(item)
        except errors.SlideError as error:
            rows.append(dice.failure(item, str(error)))
        advance(1)
    return tables


class _Clock:
    """Seconds and amounts of the parts of the work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begun = self.last = time.perf_counter()
        self.speeds: dict[str, float] = {}

    def done(self, part: str, count: int) -> None:
        """Say that a part is over, in which `count` crops or windows were worked off."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.speeds[f"{part}_per_s"] = count / max(now - self.last, 1e-9)
        self.last = now

    def numbers(self) -> dict[str, float]:
        return {**self.speeds, "seconds": time.perf_counter() - self.begun}

    def lines(self) -> list[str]:
        return [
            f"speed: {self.speeds['encode_per_s']:.0f} crops/s encoded, "
            f"{self.speeds['train_per_s']:.0f} crops/s trained on, "
            f"{self.speeds['window_per_s']:.1f} windows/s tested; {self.last - self.begun:.0f} s"
        ]


def _kept(found: list[convergence.Attempt], config: segmentation.Config) -> list[int]:
    kept = convergence.kept(found, config)
    if not kept:
        said = "; ".join(one.said() for one in found[:3])
        raise errors.PathfmError(
            f"None of {len(found)} runs converged ({said}).", "more --epochs, or another --lr"
        )
    return kept


def _training_rows(found: Sequence[convergence.Attempt]) -> list[dice.Row]:
    """Of every attempt, whether it converged and how it did on its training crops."""
    rows: list[dice.Row] = []
    for one in found:
        for name, value in (
            ("converged", float(one.converged)),
            ("train_loss", one.losses[-1]),
            ("train_dice", one.train_dice),
            ("constant_dice", one.constant_dice),
        ):
            known = value if np.isfinite(value) else None
            rows.append((name, "train", one.number, known, None, None))
    return rows


def _by_run(
    found: Sequence[convergence.Attempt], kept: Sequence[int], rows: Sequence[dice.Row]
) -> list[str]:
    """A line for every attempt."""
    values = {
        run: value
        for name, split, run, value, _, _ in rows
        if name == dice.HEADLINE and split == dice.STITCHED and run is not None
    }
    lines = []
    for one in found:
        value, out = values.get(one.number), "" if one.number in kept else ", left out"
        lines.append(
            f"run {one.number} (seed {one.seed}): {'-' if value is None else f'{value:.4f}'}, "
            f"on its training crops {one.train_dice:.4f}, "
            f"{'converged' if one.converged else 'did not converge'}{out}"
        )
    return lines


def _notes(
    found: Sequence[convergence.Attempt],
    kept: Sequence[int],
    config: segmentation.Config,
    crops: tokens.Crops,
) -> tuple[str, ...]:
    """What a person should know of the runs."""
    notes = []
    for one in found:
        if not one.converged:
            fate = "left out of the mean" if config.keep_converged else "in the mean"
            notes.append(f"{one.said()}; it is {fate}")
    if len(kept) < config.runs:
        notes.append(f"{len(kept)} of the {config.runs} runs asked for: {len(found)} were tried")
    if crops.tokens_NhwD is None:
        notes.append("the tokens do not fit in memory: crops were encoded anew in every epoch")
    return tuple(notes)


def _document(
    classes: Sequence[str],
    found: Sequence[convergence.Attempt],
    kept: Sequence[int],
    tables: dice.Tables,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What the JSON document tells beyond the table."""
    pooled = np.sum(list(tables.stitched.values()), axis=0)
    return {
        "classes": list(classes),
        "reported_on": dice.STITCHED,
        "rule": convergence.RULE,
        "attempts": [one.told() for one in found],
        "kept": list(kept),
        "confusion": {dice.STITCHED: pooled.tolist()},
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL, "units": "images"},
        "notes": list(notes),
    }


def _save_decoders(path: Path, found: Sequence[convergence.Attempt], kept: Sequence[int]) -> None:
    """Weights of the kept runs; the names of run r begin with `run{r}.`."""
    tensors = {
        f"run{number}.{name}": tensor.contiguous()
        for number in kept
        for name, tensor in found[number].module.cpu().state_dict().items()
    }
    with disk.atomic(path) as temporary:
        temporary.write_bytes(safetensors_torch.save(tensors))


def _counter(config: segmentation.Config, images: int, progress: Report) -> Callable[[int], None]:
    """A function that adds to what is done and reports it."""
    total = config.crops + config.runs * config.training.steps(config.crops) + images
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        # Attempts that fail come on top of what was foreseen.
        progress(min(done, total), total)

    return advance


def _classes(
    splits: Mapping[str, Sequence[masks.Item]], config: segmentation.Config
) -> tuple[str, ...]:
    """Names of the classes: the given ones, or the numbers up to the largest in a map of train."""
    if config.labels != "classes":
        return labelmaps.MEANINGS[config.labels]
    known, tested = (_largest(splits[name], name) for name in masks.SPLITS)
    if config.classes:
        if max(known, tested) >= len(config.classes):
            raise errors.UsageError(
                f"A label map has the class {max(known, tested)}; {len(config.classes)} are named, "
                "background with number 0.",
                "--instances if these are numbers of objects",
            )
        return config.classes
    if tested > known:
        raise errors.InputError(
            f"A label map of test has the class {tested}; those of train end at {known}.",
            "--instances if these are numbers of objects",
        )
    return ("background", *map(str, range(1, known + 1)))


def _largest(items: Sequence[masks.Item], split: str) -> int:
    """Largest class in the label maps of a split; those that cannot be read are told later."""
    found, lost = [], ""
    for item in items:
        try:
            found.append(masks.largest(item))
        except errors.SlideError as error:
            lost = lost or str(error)
    if not found:
        raise errors.InputError(
            f"No image of {split} can be used: {lost}.", "look at the paths in the table"
        )
    if not max(found):
        which = f"{split} that can be read" if lost else split
        raise errors.InputError(f"The label maps of {which} hold no foreground.", "0 is background")
    return max(found)


def _usable(
    items: Sequence[masks.Item], config: segmentation.Config, rows: list[dice.Row]
) -> Iterator[masks.Labelled]:
    """Pass crops on; an image that fails becomes a row."""
    for found in masks.random_crops(
        items, config.crops, config.size_px, config.seed, config.labels
    ):
        if isinstance(found, masks.Labelled):
            yield found
        else:
            rows.append(dice.failure(*found))


def _score(
    encoder: weights.Encoder,
    found: Sequence[convergence.Attempt],
    shown: int,
    config: segmentation.Config,
    classes: int,
    folder: Path,
    item: masks.Item,
) -> tuple[metrics.Counts, metrics.Counts]:
    """Predict a test image, write the map and picture of one run, and count pixels.

    Returns:
        (R, C, C) of the stitched image, and (windows, R, C, C).
    """
    whole = masks.read(item, config.labels)
    encode = functools.partial(tokens.encode, encoder, features=config.features)
    modules = [one.module for one in found]
    size_px, stride_px = config.size_px, config.stride_px
    predicted = tokens.predict(whole.image, encode, modules, classes, size_px, stride_px)
    maps, pictures = (folder / segmentation.FILES[name] for name in ("predictions", "overlays"))
    overlays.write_map(maps / item.file_name, predicted[shown].whole)
    overlays.write_overlay(pictures / item.file_name, whole, predicted[shown].whole)
    stitched = [metrics.confusion(whole.label, one.whole, classes) for one in predicted]
    truth = masks.pad(whole, size_px).label
    windows = []
    corners = tokens.corners(truth.shape[0], truth.shape[1], size_px, stride_px)
    for number, (y, x) in enumerate(corners):
        label = truth[y : y + size_px, x : x + size_px]
        known = label != masks.IGNORE
        windows.append(
            [
                metrics.confusion(label[known], one.windows_WSS[number][known], classes)
                for one in predicted
            ]
        )
    return np.stack(stitched), np.array(windows, dtype=np.int64)


def _failures(table: Path) -> list[tuple[str, str]]:
    failed = pl.read_parquet(table).filter(pl.col("error").is_not_null())
    return list(failed.select("image", "error").iter_rows())
