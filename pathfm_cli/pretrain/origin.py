"""What a training starts from: weights of others, or a run of pathfm, beyond a random encoder.

Of a file or a run also the projection heads, the student's own weights, the centre and AdamW's
moments can be taken, see `sections.Start`; where they lie in foreign files says `layouts`.
Nothing is unpickled, see `model.files`. What of a file is not used is told on the log.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export, files, foreign, names, vit, weights
from pathfm_cli.pretrain import folder, layouts, recipe, sections, transplant

log = logging.getLogger("pathfm.pretrain")

SCRATCH = "scratch"
_ANCHOR = "--set loss.gram_anchor=run1/, an earlier run of the same encoder"
_FRESH = "--set model.init=scratch, or the path of a run or checkpoint"
_CENTRE_WORDS = {"centre_K": "centre", "patch.centre_K": "centre of patch tokens"}
_STUDENT = "student.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a file or run holds, on the CPU, in its own names; None where it holds no such thing."""

    name: str
    foreign: bool
    """Whether the names are not timm's already."""
    encoder: Mapping[str, torch.Tensor]
    """The teacher's, or the only one there is."""
    beside: tuple[str, ...] = ()
    """What else lies in the file."""
    student: Mapping[str, torch.Tensor] | None = None
    """The student's encoder."""
    teacher_head: Mapping[str, torch.Tensor] | None = None
    student_head: Mapping[str, torch.Tensor] | None = None
    teacher_ibot_head: Mapping[str, torch.Tensor] | None = None
    """The patch objective's own head."""
    student_ibot_head: Mapping[str, torch.Tensor] | None = None
    mask_token_D: torch.Tensor | None = None
    """What the student sees in the place of hidden patches, of any shape."""
    centre_K: torch.Tensor | None = None
    patch_centre_K: torch.Tensor | None = None
    """The centre of patch tokens."""
    moments: Mapping[str, torch.Tensor] | None = None
    """As `optimiser.safetensors` of a checkpoint: `exp_avg.PARAMETER` and so on."""


def check(settings: recipe.Recipe) -> None:
    """See, before any input is read, that the start can hold what is to be taken from it.

    Raises:
        errors.InputError: a path that is not there.
        errors.UsageError: a name that no encoder has, or parts are to be kept of what is no file
            and no run.
    """
    init, start = settings.model.init, settings.start
    if settings.loss.gram_anchor:
        _check_anchor(Path(settings.loss.gram_anchor))
    path = Path(init)
    if path.exists():
        return
    if init.endswith("/") or path.is_absolute() or path.suffix in files.SUFFIXES:
        raise errors.InputError(f"{init}, to start from, does not exist.", _FRESH)
    if start != sections.Start():
        kept = next(
            f.name for f in dataclasses.fields(start) if getattr(start, f.name) != f.default
        )
        raise errors.UsageError(
            f"start.{kept} is {getattr(start, kept)!r}, but {init} is no run and no checkpoint.",
            "--init run1/, or a full checkpoint",
        )
    if init != SCRATCH:
        names.check(init)


def _check_anchor(path: Path) -> None:
    if not path.exists():
        raise errors.InputError(f"{path}, to anchor patches at, does not exist.", _ANCHOR)
    if _is_run(path):
        export.read_info(path)
    elif path.suffix not in files.SUFFIXES:
        raise errors.UsageError(
            f"{path}, to anchor patches at, is no checkpoint: known are "
            f"{' '.join(files.SUFFIXES)}.",
            _ANCHOR,
        )


def sources(settings: recipe.Recipe) -> list[Path]:
    """The files that the start is read from, for the identity of the run; none without any."""
    anchor = settings.loss.gram_anchor
    init, hides = Path(settings.model.init), settings.loss.ibot > 0
    return [
        *_sources(init, settings.start, hides=hides),
        *(_sources(Path(anchor), sections.Start(), hides=False) if anchor else []),
    ]


def _sources(path: Path, start: sections.Start, *, hides: bool) -> list[Path]:
    if not path.exists():
        return []
    if not _is_run(path):
        return [path]
    found = [artifacts.resolve(path)]
    if start != sections.Start():
        found += sorted(_newest(path).glob("*.safetensors"))
    elif hides and (kept := _kept(path)):
        found.append(kept[-1] / _STUDENT)
    return found


def load_anchor(path: str, network: nn.Module, arch: str) -> None:
    """Load the encoder of a run, an export or a checkpoint file into a `networks.Network`.

    Raises:
        errors.InputError: it cannot be read.
        errors.UsageError: it does not fit.
    """
    where = Path(path)
    source = _run(where, sections.Start(), hides=False) if _is_run(where) else _file(where)
    try:
        _load_encoder(network, source, source.encoder, arch)
    except errors.UsageError as error:
        raise errors.UsageError(f"As an anchor of patches: {error}", _ANCHOR) from error


def apply(settings: recipe.Recipe, student: nn.Module, teacher: nn.Module) -> Source | None:
    """Load the first weights into two networks whose heads are fresh and equal.

    Args:
        settings: the recipe.
        student: a `networks.Network`.
        teacher: another.

    Returns:
        Where they came from, for `carry`; None for scratch.

    Raises:
        errors.InputError: the source cannot be had or read, or lacks what is to be kept.
        errors.UsageError: it does not fit the recipe.
    """
    init, start = settings.model.init, settings.start
    if init == SCRATCH:
        return None
    check(settings)
    path = Path(init)
    if not path.exists():
        source = _published(init)
    else:
        hides = getattr(student, "mask_token", None) is not None
        source = _run(path, start, hides=hides) if _is_run(path) else _file(path)
    own = source.student if start.student == "own" else source.encoder
    if own is None:
        raise transplant.lacks(init, "student", "--set start.student=teacher")
    left = _load_encoder(teacher, source, source.encoder, settings.model.arch)
    _load_encoder(student, source, own, settings.model.arch)
    both = (teacher, student)
    if start.heads == "keep":
        left = [name for name in left if not layouts.HEAD.match(name)]
        heads = (source.teacher_head, source.student_head or source.teacher_head)
        for network, head in zip(both, heads, strict=True):
            left += transplant.head(network, "head", head, init)
        if getattr(student, "ibot_head", None) is not None:
            left = [name for name in left if not layouts.IBOT_HEAD.match(name)]
            heads = (source.teacher_ibot_head, source.student_ibot_head or source.teacher_ibot_head)
            for network, head in zip(both, heads, strict=True):
                transplant.head(network, "ibot_head", head, init)
        elif source.teacher_ibot_head and not source.foreign:
            left.append("ibot_head")
    if transplant.mask_token(both, source.mask_token_D, init):
        left = [name for name in left if not layouts.MASK_TOKEN.match(name)]
    elif getattr(student, "mask_token", None) is not None:
        log.info("mask token: zero, as %s has none", source.name)
    _tell(source, start, left)
    return source


def carry(
    source: Source | None,
    start: sections.Start,
    centre: nn.Module,
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Take the centre and AdamW's moments over, where the recipe says so.

    Raises:
        errors.InputError: the source has none.
        errors.UsageError: another number of prototypes.
    """
    if source is None:
        return
    if start.centre == "keep":
        found = {"centre_K": source.centre_K, "patch.centre_K": source.patch_centre_K}
        for name, buffer in centre.named_buffers():
            transplant.centre(buffer, found[name], _CENTRE_WORDS[name], source.name)
    if start.moments == "keep":
        if source.moments is None:
            raise transplant.lacks(source.name, "moments of AdamW", "--set start.moments=fresh")
        heads = start.heads == "keep"
        transplant.moments(source.moments, student, optimiser, source.name, heads=heads)


def _is_run(path: Path) -> bool:
    return path.is_dir() or files.is_exported(path)


def _kept(path: Path) -> list[Path]:
    """The checkpoints of a run, the newest last; an export has none."""
    return folder.checkpoints((path if path.is_dir() else path.parent) / folder.CHECKPOINTS)


def _newest(path: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        errors.InputError: it keeps none, as an export does not.
    """
    if not (found := _kept(path)):
        raise errors.InputError(
            f"{path} keeps no checkpoint, only the teacher's encoder.",
            "start from it alone: --set start.student=teacher --set start.heads=fresh "
            "--set start.centre=fresh --set start.moments=fresh",
        )
    return found[-1]


def _run(path: Path, start: sections.Start, *, hides: bool) -> Source:
    """A run or an export; with `hides`, the mask token is wanted where there is one."""
    file = artifacts.resolve(path)
    if not file.is_file():
        raise errors.InputError(
            f"{path} holds no {export.WEIGHTS}.", "finish the run first: the same command again"
        )
    encoder = files.read(file)
    if start == sections.Start():
        kept = _kept(path) if hides else []
        token = files.read(kept[-1] / _STUDENT).get("mask_token") if kept else None
        return Source(name=str(path), foreign=False, encoder=encoder, mask_token_D=token)
    newest = _newest(path)
    student, teacher, centre, moments = (
        files.read(newest / f"{name}.safetensors")
        for name in ("student", "teacher", "centre", "optimiser")
    )
    return Source(
        name=str(path),
        foreign=False,
        encoder=encoder,
        student=layouts.below(student, "backbone."),
        teacher_head=layouts.below(teacher, "head."),
        student_head=layouts.below(student, "head."),
        teacher_ibot_head=layouts.below(teacher, "ibot_head.") or None,
        student_ibot_head=layouts.below(student, "ibot_head.") or None,
        mask_token_D=student.get("mask_token"),
        centre_K=centre.get("centre_K"),
        patch_centre_K=centre.get("patch.centre_K"),
        moments=moments,
    )


def _file(path: Path) -> Source:
    if path.suffix not in files.SUFFIXES:
        raise errors.UsageError(
            f"{path} is no checkpoint: known are {' '.join(files.SUFFIXES)}.", _FRESH
        )
    content = files.read(path)
    encoder, beside = foreign.select(content, str(path))
    teacher, student = (layouts.branch(content, name, path) for name in ("teacher", "student"))
    return Source(
        name=str(path),
        foreign=True,
        encoder=teacher or encoder,
        beside=tuple(beside),
        student=student,
        teacher_head=layouts.head(teacher),
        student_head=layouts.head(student),
        teacher_ibot_head=layouts.head(teacher, layouts.IBOT_HEAD),
        student_ibot_head=layouts.head(student, layouts.IBOT_HEAD),
        mask_token_D=layouts.mask_token(student) if student else layouts.mask_token(encoder),
        centre_K=layouts.centre(content, layouts.CENTRES),
        patch_centre_K=layouts.centre(content, layouts.PATCH_CENTRES),
    )


def _published(name: str) -> Source:
    try:
        encoder = weights.load(name, device="cpu", precision="fp32")
    except errors.InputError as error:
        raise errors.InputError(str(error), _FRESH) from error
    return Source(name=name, foreign=False, encoder=encoder.module.state_dict())


def _load_encoder(
    network: nn.Module, source: Source, found: Mapping[str, torch.Tensor], arch: str
) -> list[str]:
    """Load an encoder; return the names that are none of its own."""
    backbone = network.get_submodule("backbone")
    if source.foreign:
        state, left = weights.named(found, backbone)
    else:
        state, left = vit.adapt(found, backbone), []
    what = f"The weights {source.name} do not fit {arch}"
    try:
        foreign.check_fit(state, backbone.state_dict(), what)
    except errors.InputError as error:
        hint = "--set model.init=scratch, or the model.arch that they were trained with"
        raise errors.UsageError(str(error), hint) from error
    backbone.load_state_dict(state)
    return left


def _tell(source: Source, start: sections.Start, left: list[str]) -> None:
    """Say on the log what of the source is not used."""
    places = (*layouts.CENTRES, *layouts.PATCH_CENTRES) if start.centre == "keep" else ()
    used = {name for name, _ in places}
    if start.student == "own" or start.heads == "keep":
        used.add("student")
    names = [n for n in dict.fromkeys([*source.beside, *left]) if n.partition(".")[0] not in used]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    said = f"; left aside: {', '.join(names[:3])}{more}" if names else ""
    log.info("first weights: %s%s", source.name, said)
