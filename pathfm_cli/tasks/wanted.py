"""What the flags of `segment` name: images with label maps, and the classes of these."""

from __future__ import annotations

from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.tasks import masks, segmentation
from pathfm_cli.tasks.datasets import catalogue, consep


def meaning(instances: bool, boundaries: bool, named: str | None) -> str:
    """What the numbers of label maps say, a name in `labelmaps.MEANINGS`.

    Args:
        instances: value of `--instances`.
        boundaries: of `--boundaries`.
        named: of `--classes`.

    Raises:
        errors.UsageError: two of them were given.
    """
    given = {"--instances": instances, "--boundaries": boundaries, "--classes": named}
    flags = [flag for flag, value in given.items() if value]
    if len(flags) > 1:
        raise errors.UsageError(f"{flags[0]} and {flags[1]} exclude each other.", flags[0])
    return "boundaries" if boundaries else "objects" if instances else "classes"


def classes(named: str | None) -> tuple[str, ...]:
    """Names of classes, background first, from a list with commas or a file; () for None.

    Raises:
        errors.UsageError, errors.InputError: as `masks.read_classes`.
    """
    if named is None:
        return ()
    if Path(named).is_file():
        return masks.read_classes(Path(named))
    return masks.check_classes([name.strip() for name in named.split(",")])


def items(
    images: Path | None, task: str | None, data: Path | None, partial: bool
) -> tuple[list[masks.Item], tuple[str, ...], tuple[str, ...]]:
    """Images and label maps of a table, a folder or a data set, the classes it names, and notes.

    Args:
        images: table or folder.
        task: name of a data set.
        data: its folder.
        partial: see `datasets.base.Dataset.open`.

    Raises:
        errors.UsageError: neither or both of table and data set, or one that is not segmented.
        errors.InputError: it cannot be read.
    """
    if images and not (task or data or partial):
        return _read(images)
    if task is None or images is not None:
        raise errors.UsageError("segment needs --images or --task, one of them.", "--task consep")
    dataset = catalogue.find(task)
    if not isinstance(dataset, consep.Consep):
        raise errors.UsageError(f"{task} has no label maps.", "--task consep, or probe --task")
    found, notes = dataset.items(catalogue.locate(task, data), partial=partial)
    return found, dataset.facts.classes, notes


def _read(images: Path) -> tuple[list[masks.Item], tuple[str, ...], tuple[str, ...]]:
    """As `items`, of a table or a folder; the notes say what is left out."""
    if not images.is_dir():
        found = masks.read_table(images)
        return found, (), segmentation.left_out(found)
    found, names, left = masks.read_folder(images)
    more = ", ..." if len(left) > 3 else ""
    said = f"{len(left)} entries of {images} are left out: {', '.join(left[:3])}{more}"
    return found, names, (said,) if left else ()
