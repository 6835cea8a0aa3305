"""Tissue to a `patches` artifact: a fixed set of places, at random or on a grid (paper IV-B)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import polars as pl

from pathfm_cli import artifacts, cluster, errors
from pathfm_cli.data import cohort, draw, grid

DRAWS_PER_PART = 8192
SLIDES_PER_PART = 8
"""Whose cells are kept together for a rerun; a cluster shares them out one by one."""
MAX_PATCHES = 1_000_000_000
"""In one artifact; about 30 GB."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Random:
    """Patches 0 to `n - 1` of the stream of `seed`."""

    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_PATCHES:
            raise errors.UsageError(f"n is {self.n}; it is from 1 to {MAX_PATCHES:,}.", "--n 1000")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every cell with enough tissue of a grid that starts at the left upper corner of the slide."""

    stride_px: int
    """Distance of neighbours at the patch's mpp; equal to the size, the cells just touch."""

    def __post_init__(self) -> None:
        if self.stride_px < 1:
            raise errors.UsageError(
                f"The stride is {self.stride_px} px; it must be above 0.", "--stride 256"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """The finished artifact: its record, sentences about it, lines for a person."""

    record: dict[str, Any]
    notes: tuple[str, ...]
    summary: tuple[str, ...]


def parse_mpp(text: str) -> tuple[float, ...]:
    """Read `0.25,0.5,1,2`.

    Raises:
        errors.UsageError: not numbers, or magnifications such as 40x.
    """
    hint = "um/px: 40x, 20x, 10x, 5x are about --mpp 0.25,0.5,1,2"
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise errors.UsageError(f"--mpp {text} is no list of numbers.", hint) from error
    if max(values) >= 20:
        raise errors.UsageError(f"--mpp {text} looks like a magnification.", hint)
    return values


def _parse_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        hint = "a number for each --mpp: --mpp-weights 1,2,2,1"
        raise errors.UsageError(f"--mpp-weights {text} is no list of numbers.", hint) from error


def request(
    mpp: str,
    size_px: int,
    min_tissue: float,
    strategy: str,
    weights: str,
    *,
    n: int | None,
    seed: int,
    gridded: bool,
    stride_px: int | None,
    mpp_weights: str = "",
    where: str = "",
    subset: float = 1.0,
    subset_seed: int = 0,
) -> tuple[draw.SampleConfig, Random | Grid]:
    """Settings from plain values.

    Raises:
        errors.UsageError: one is out of range, or two contradict each other.
    """
    if gridded == (n is not None):
        raise errors.UsageError(
            "Name either a number of random patches or a grid.", "--n 1000, or --grid"
        )
    if gridded and (weights or mpp_weights or strategy != "uniform" or seed):
        raise errors.UsageError(
            "A grid takes every cell: it has no seed, strategy or weights.", "--n 1000"
        )
    if weights and strategy != "uniform":
        raise errors.UsageError(
            f"--strategy {strategy} and --weights {weights} contradict each other.", "leave one out"
        )
    if stride_px is not None and not gridded:
        raise errors.UsageError("Only a grid has a stride.", "--grid")
    chosen = draw.SampleConfig(
        mpp=parse_mpp(mpp),
        mpp_weights=_parse_weights(mpp_weights) if mpp_weights else (),
        where=where,
        subset=subset,
        subset_seed=subset_seed,
        size_px=size_px,
        min_tissue=min_tissue,
        strategy=cast(draw.Strategy, "column" if weights else strategy),
        weights_column=weights,
    )
    if n is not None:
        return chosen, Random(n=n, seed=seed)
    return chosen, Grid(stride_px=size_px if stride_px is None else stride_px)


def check(
    out: str | os.PathLike[str],
    config: draw.SampleConfig,
    choice: Random | Grid,
    *,
    overwrite: bool = False,
) -> None:
    """Refuse an output that is surely something else, before any input is looked at.

    Raises:
        errors.OutputClash: as `artifacts.refuse`.
    """
    artifacts.refuse(out, "patches", _settings(config, choice), overwrite=overwrite)


def sample(
    tissue: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: draw.SampleConfig,
    choice: Random | Grid,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    spread: cluster.Cluster | None = None,
) -> Sampled:
    """Choose patches and write them, with the rows of the slides they need.

    Args:
        tissue: a `tissue` artifact.
        out: the Parquet file to write.
        config: mpp, size, least tissue; for `Random` also the strategies.
        choice: at random or on a grid.
        overwrite: replace a result made with other inputs or settings.
        progress: told (done, total): patches, or slides of a grid.
        spread: a cluster whose workers measure the cells of a grid, slide by slide.

    Raises:
        errors.InputError: `tissue` is no `tissue` artifact, or all its slides carry errors.
        errors.OutputClash: `out` holds something else.
        errors.UsageError: no patch fits.
    """
    table = artifacts.read_table(tissue, "tissue")
    cohort.require_usable(table.header, tissue)
    header = _header(table, out, config, choice)
    slides = _taking_part(table.frame, config)
    if record := artifacts.finished(out, header, overwrite=overwrite):
        used = artifacts.read_table(out, "patches").attached["slides"]["slide"]
        notes = (f"{out} is up to date", *_notes(table.frame, slides, config, choice, used))
        return Sampled(record, notes, _summary(record, used))
    draw.check_feasible(slides, config)
    if isinstance(choice, Grid):
        _check_cells(slides, config, choice)
    parts = artifacts.Parts(out, header)
    done = parts.done()
    tasks = list(_tasks(table, slides, config, choice))
    made = _made([task for number, _, task in tasks if number not in done], spread)
    for number, total, _ in tasks:
        if number not in done:
            parts.write(number, next(made))
        progress(number + 1, total)
    frame = parts.scan()
    used = frame.select(pl.col("slide").unique()).collect()["slide"]
    if used.is_empty():
        parts.discard()
        raise errors.UsageError(
            f"No cell of the grid has {config.min_tissue:.0%} tissue.",
            "lower --min-tissue, a finer --mpp, or a smaller --size",
        )
    attached = slides.filter(pl.col("slide").is_in(used.implode())).drop("geometry")
    record = artifacts.write_table(out, frame, header, attached={"slides": attached})
    parts.discard()
    notes = _notes(table.frame, slides, config, choice, used)
    return Sampled(record, notes, _summary(record, used))


def plan(
    tissue: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: draw.SampleConfig,
    choice: Random | Grid,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `sample` would do; reads no slide.

    Raises:
        errors.PathfmError: as `sample`.
    """
    table = artifacts.read_table(tissue, "tissue")
    cohort.require_usable(table.header, tissue)
    slides = _taking_part(table.frame, config)
    header = _header(table, out, config, choice)
    finished = artifacts.finished(out, header, overwrite=overwrite) is not None
    draw.check_feasible(slides, config)
    able = (draw.feasibility(slides, config) == 0).any(axis=1)
    return {
        "slides": table.frame.height,
        "slides_that_take_part": slides.height,
        "slides_that_can_give_patches": int(able.sum()),
        "patches": choice.n
        if isinstance(choice, Random)
        else f"at most {_check_cells(slides, config, choice)}",
        "already_done": finished,
        "writes": os.path.abspath(out),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of these slides, rows of a `tissue` table; can be pickled."""

    slides: pl.DataFrame
    config: draw.SampleConfig
    stride_px: int

    def __call__(self) -> pl.DataFrame:
        return grid.cells(self.slides, self.config, self.stride_px)

    def each(self) -> Iterator[_Cells]:
        """The same, slide by slide."""
        for rows in self.slides.iter_slices(1):
            yield _Cells(rows, self.config, self.stride_px)


_Task = Callable[[], pl.DataFrame]


def _taking_part(frame: pl.DataFrame, config: draw.SampleConfig) -> pl.DataFrame:
    """The slides without error that `where` and `subset` leave."""
    usable = frame.filter(pl.col("error").is_null())
    return usable.filter(draw.taking_part(usable, config))


def _check_cells(slides: pl.DataFrame, config: draw.SampleConfig, choice: Grid) -> int:
    """Cells of a grid over the whole slides: no more patches can come of it."""
    cells = grid.most(slides, config, choice.stride_px)
    if cells > MAX_PATCHES:
        raise errors.UsageError(
            f"The grid has {cells:,} cells; at most {MAX_PATCHES:,} fit one artifact.",
            f"--stride {config.size_px}",
        )
    return cells


def _tasks(
    table: artifacts.Table, slides: pl.DataFrame, config: draw.SampleConfig, choice: Random | Grid
) -> Iterator[tuple[int, int, _Task]]:
    """Chunks of work: number, how many there are, and what makes the rows."""
    if isinstance(choice, Grid):
        stride = choice.stride_px
        total = -(-slides.height // SLIDES_PER_PART)
        for number in range(total):
            rows = slides[number * SLIDES_PER_PART : (number + 1) * SLIDES_PER_PART]
            yield number, total, _Cells(rows, config, stride)
        return
    sampler = draw.Sampler(table, config, choice.seed)
    ids = table.frame.filter(pl.col("error").is_null())["slide"]
    total = -(-choice.n // DRAWS_PER_PART)
    for number in range(total):
        numbers = range(number * DRAWS_PER_PART, min((number + 1) * DRAWS_PER_PART, choice.n))
        yield number, total, functools.partial(_drawn, sampler, ids, numbers)


def _made(tasks: Sequence[_Task], spread: cluster.Cluster | None) -> Iterator[pl.DataFrame]:
    """The rows of each task, in order."""
    grids = [task for task in tasks if isinstance(task, _Cells)]
    if spread is None or not grids:
        yield from (task() for task in tasks)
        return
    slides = itertools.chain.from_iterable(task.each() for task in grids)
    together = spread.share(sum(task.slides.height for task in grids), SLIDES_PER_PART)
    frames = spread.map(_call, slides, together=together)
    for task in grids:
        yield pl.concat(itertools.islice(frames, task.slides.height))


def _call(task: _Task) -> pl.DataFrame:
    return task()


def _drawn(sampler: draw.Sampler, ids: pl.Series, numbers: range) -> pl.DataFrame:
    rows = [dataclasses.asdict(sampler.draw(number)) for number in numbers]
    frame = pl.DataFrame(rows)
    return frame.with_columns(slide=ids[frame["slide"]]).select(grid.SCHEMA.keys())


def _header(
    table: artifacts.Table,
    out: str | os.PathLike[str],
    config: draw.SampleConfig,
    choice: Random | Grid,
) -> artifacts.Header:
    return artifacts.Header(
        kind="patches",
        parents=(f"{table.header.kind}:{table.header.id}",),
        settings=_settings(config, choice),
        files=cohort.companions(table, out),
    )


def _settings(config: draw.SampleConfig, choice: Random | Grid) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    settings |= {"mpp": list(config.mpp), "mpp_weights": list(config.mpp_weights)}
    return settings | {type(choice).__name__.lower(): dataclasses.asdict(choice)}


def _notes(
    table: pl.DataFrame,
    slides: pl.DataFrame,
    config: draw.SampleConfig,
    choice: Random | Grid,
    used: pl.Series,
) -> tuple[str, ...]:
    """No slide vanishes silently."""
    notes = []
    bad = table.height - table["error"].null_count()
    if bad:
        notes.append(f"{bad} of {table.height} slides carry errors from index or mask")
    if slides.height < table.height - bad:
        notes.append(f"{slides.height} of {table.height - bad} slides take part")
    reasons = draw.feasibility(slides, config)
    for column, mpp in enumerate(config.mpp):
        for reason, why in enumerate(draw.REASONS):
            if reason and (names := slides["slide"].filter(reasons[:, column] == reason)).len():
                notes.append(f"{_named(names)} no patch at mpp {mpp:g}: {why}")
    if isinstance(choice, Grid):
        able = slides["slide"].filter((reasons == 0).any(axis=1))
        if (names := able.filter(~able.is_in(used.implode()))).len():
            notes.append(f"{_named(names)} no patch: no cell has {config.min_tissue:.0%} tissue")
    return tuple(notes)


def _named(names: pl.Series) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"1 slide ({shown}) gives" if len(names) == 1 else f"{len(names)} slides ({shown}) give"


def _summary(record: dict[str, Any], used: pl.Series) -> tuple[str, ...]:
    return (f"{record['path']}: {record['rows']} patches from {len(used)} slides",)
