"""What `--model` means: a run, a checkpoint file, fresh weights or a timm name, as an `Encoder`.

Nothing here unpickles: safetensors, or `torch.load(weights_only=True)`. Shapes: B images,
H x W pixels, K width of the embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import (
    density,
    export,
    files,
    foreign,
    hub,
    hub_names,
    names,
    pooling,
    transform,
    vit,
    zoo,
)
from pathfm_cli.model import device as devices

IMAGE_SIZE_PX = 224
"""Side of the input of the evaluation protocols (kaiko-eva: Resize(224), CenterCrop(224))."""
MAX_TOKENS = 1 << 14
"""Patch tokens of an image that a description may ask for: 2,048 px in patches of 16."""

WAYS = "--model RUN_FOLDER, --model FILE --arch TIMM_NAME, --model TIMM_NAME or random/TIMM_NAME"

Image = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """A frozen encoder, ready to run.

    Attributes:
        module: in eval mode on `device`; (B, 3, S, S) float to (B, K) or (B, N, K) float, of
            which the first token is meant unless `tokens` says otherwise.
        name: short and free of paths.
        id: 12 hex digits of sha256 over weights, architecture, input and embedding rule.
        dim: K.
        image_size_px: S, side of the input.
        mean: per channel, for pixels in 0..1.
        std: per channel, for pixels in 0..1.
        embedding: which output is the embedding: cls, cls+mean, patch, or the name of the pooling.
        prefix_tokens: class and register tokens before the patch tokens.
        device: where it runs.
        precision: fp32 or bf16, what it computes in.
        dropped: names in the checkpoint that are no part of the encoder.
        input: what it sees of the pixels: rgb, or density, see `density`.
        tokens: T, patch tokens of an image where they are the embedding; else 0.
    """

    module: nn.Module
    name: str
    id: str
    dim: int
    image_size_px: int
    mean: transform.Channels
    std: transform.Channels
    embedding: str
    prefix_tokens: int
    device: torch.device
    precision: str
    dropped: tuple[str, ...] = ()
    input: str = "rgb"
    tokens: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's embedding: (K,), or (T, K) of patch tokens."""
        return (self.tokens, self.dim) if self.tokens else (self.dim,)

    def settings(self) -> dict[str, Any]:
        """What an artifact made with this encoder records of it."""
        return {
            "model": self.name,
            "embedding": self.embedding,
            "image_size_px": self.image_size_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": "shorter side, bilinear with antialias, centre crop",
            "precision": self.precision,
            **({} if self.input == "rgb" else {"input": self.input}),
        }

    def encode(self, images: torch.Tensor | Image | Sequence[Image]) -> torch.Tensor:
        """Embed images.

        Args:
            images: (B, H, W, 3) uint8, or a sequence of (H, W, 3) uint8 of any sizes.

        Returns:
            (B, *`shape`) float32 on `device`; on CUDA it may still be computing.
        """
        if isinstance(images, torch.Tensor | np.ndarray):
            pixels = transform.upload(torch.as_tensor(images), self.device)
            batch = transform.prepare(pixels, self.image_size_px, self.mean, self.std)
        else:
            batch = transform.prepare_mixed(
                [torch.as_tensor(image) for image in images],
                self.image_size_px,
                self.mean,
                self.std,
                self.device,
            )
        with torch.inference_mode(), devices.autocast(self.device, self.precision):
            features: torch.Tensor = self.module(batch.to(self.device))
        return (features[:, 0] if features.ndim > len(self.shape) + 1 else features).float()


def load(
    spec: str | os.PathLike[str],
    *,
    arch: str | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    precision: str = "auto",
    image_size_px: int | None = None,
    mean: transform.Channels | None = None,
    std: transform.Channels | None = None,
    embedding: str | None = None,
) -> Encoder:
    """Load the encoder that `spec` means.

    Args:
        spec: a run folder or its `teacher.safetensors`; a checkpoint file (with `arch`);
            `random/ARCH`; a name of the zoo; or a timm name, `hf-hub:OWNER/NAME` included.
        arch: timm name of a checkpoint file's architecture, or the zoo's name of the encoder.
        seed: of fresh weights.
        device: a device, or a name for `device.pick`.
        precision: auto, fp32 or bf16.
        image_size_px: input side; by default a run's own, else 224 where the encoder takes it.
        mean: replaces a run's own, or timm's for the architecture.
        std: as `mean`.
        embedding: one of `zoo.RULES`; by default the encoder's own.

    Raises:
        errors.UsageError: unknown name, options that do not go together, or an embedding that the
            encoder does not have.
        errors.InputError: a file or the weights cannot be had, read, or do not fit.
    """
    where = devices.pick(device) if isinstance(device, str) else device
    precision = devices.resolve(where, precision)
    loaded = _load(str(spec), arch, seed)
    info = loaded.info
    info = dataclasses.replace(
        info,
        image_size_px=_image_size(loaded, image_size_px),
        mean=mean or info.mean,
        std=std or info.std,
        embedding=embedding or info.embedding,
    )
    tokens = _check_rule(loaded, info, embedding)
    module, dim = on_input(loaded.module, info), vit.width(loaded.module)
    module = pooling.by_rule(module, info.embedding, loaded.info.embedding, info.prefix_tokens)
    return Encoder(
        module=module.eval().requires_grad_(False).to(where),
        name=loaded.name,
        id=_identity(loaded.module, info),
        dim=2 * dim if info.embedding == pooling.CLASS_AND_MEAN else dim,
        image_size_px=info.image_size_px,
        mean=info.mean,
        std=info.std,
        embedding=info.embedding,
        prefix_tokens=info.prefix_tokens,
        tokens=tokens if info.embedding == pooling.PATCH else 0,
        device=where,
        precision=precision,
        dropped=tuple(loaded.dropped),
        input=info.input,
    )


def on_input(module: nn.Module, info: export.Info) -> nn.Module:
    """Put what `info.input` says before an encoder, for pixels normalised by its mean and std."""
    if info.input == "density":
        return density.OnDensity(module, info.mean, info.std)
    return module


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """A module with what is known of it; `made_for` is whether `info` gives the input's side."""

    module: nn.Module
    name: str
    info: export.Info
    made_for: bool = False
    dropped: Sequence[str] = ()


def _check_rule(loaded: _Loaded, info: export.Info, asked: str | None) -> int:
    """Patch tokens of an image, where another rule than the encoder's own was asked for; else 0."""
    zoo.check_rule(asked)
    if asked is None or asked == loaded.info.embedding:
        return 0
    module, side = loaded.module.eval(), info.image_size_px
    return pooling.check(module, asked, loaded.name, info.prefix_tokens, side)


def _load(spec: str, arch: str | None, seed: int) -> _Loaded:
    path = Path(spec)
    if path.is_dir() or files.is_exported(path):
        names.refuse_arch(arch, spec)
        return _run(path)
    if path.is_file():
        return _file(path, arch)
    if spec.startswith(names.FRESH):
        names.refuse_arch(arch, spec)
        return _fresh(spec.removeprefix(names.FRESH), seed)
    if path.suffix in files.SUFFIXES or spec.startswith((".", "/", "~")) or spec.endswith("/"):
        raise errors.InputError(f"{spec} does not exist.", WAYS)
    names.refuse_arch(arch, spec)
    if entry := zoo.find(spec):
        return _published(entry)
    names.check(spec)
    module = hub.pretrained(spec)
    return _Loaded(module=module, name=spec, info=_timm_info(spec, module))


def _run(path: Path) -> _Loaded:
    file = path / export.WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise errors.InputError(
            f"{path} holds no {export.WEIGHTS}.", "a run writes it at its first export"
        )
    info = export.read_info(file)
    state = files.read(file)
    files.check_arguments(info.arch, info.kwargs, len(state), file.parent / export.MODEL)
    # What does not fit the weights is found before anything of its size is allocated.
    try:
        with torch.device("meta"):
            shape = vit.build(info.arch, **info.kwargs)
    except errors.UsageError as error:
        described = file.parent / export.MODEL
        raise errors.InputError(f"{described} describes no encoder: {error}") from error
    tokens = (info.image_size_px // vit.patch_px(shape)) ** 2
    if hasattr(shape, "patch_embed") and tokens > MAX_TOKENS:
        raise errors.InputError(
            f"{file.parent / export.MODEL} asks for {tokens} tokens an image, which is not "
            "plausible.",
            "pathfm writes model.json together with the weights: copy both",
        )
    foreign.check_fit(state, shape.state_dict(), f"{file} does not fit its {export.MODEL}")
    if info.prefix_tokens != vit.prefix_tokens(shape):
        raise errors.InputError(
            f"{file.parent / export.MODEL} states {info.prefix_tokens} prefix tokens; {info.arch} "
            f"has {vit.prefix_tokens(shape)}.",
            "pathfm writes model.json together with the weights: copy both",
        )
    module = vit.build(info.arch, **info.kwargs)
    module.load_state_dict(state)
    return _Loaded(module=module, name=info.arch, info=info, made_for=True)


def _published(entry: zoo.Entry) -> _Loaded:
    hint = f"download {entry.get}; then --model FILE --arch {entry.id}"
    if entry.source == zoo.FILE:
        raise errors.InputError(f"The weights of {entry.id} are read from a file.", hint)
    try:
        module = hub.pretrained(entry.source.removeprefix("timm:"), **entry.kwargs)
    except errors.InputError as error:
        raise errors.InputError(str(error), hint) from error
    return _Loaded(module=module, name=entry.id, info=_zoo_info(entry), made_for=True)


def _zoo_info(entry: zoo.Entry) -> export.Info:
    return export.Info(
        arch=entry.arch,
        kwargs={**vit.defaults(entry.arch), **entry.kwargs},
        image_size_px=entry.image_size_px,
        mean=entry.mean,
        std=entry.std,
        embedding=entry.embedding,
        prefix_tokens=entry.prefix_tokens,
    )


def _file(path: Path, arch: str | None) -> _Loaded:
    if path.suffix not in files.SUFFIXES:
        raise errors.UsageError(
            f"{path} is no checkpoint: known are {' '.join(files.SUFFIXES)}.", WAYS
        )
    if arch is None:
        raise errors.UsageError(
            f"{path} does not say which architecture it holds.",
            f"--model {path} --arch vit_small_patch16_224",
        )
    entry = zoo.find(arch)
    module = vit.build(entry.arch, **entry.kwargs) if entry else vit.build(arch)
    selected, beside = foreign.select(files.read(path), str(path))
    state, dropped = named(selected, module)
    foreign.check_fit(state, module.state_dict(), f"{path} does not fit {arch}")
    module.load_state_dict(state)
    info = _zoo_info(entry) if entry else _timm_info(arch, module)
    return _Loaded(
        module=module, name=arch, info=info, made_for=bool(entry), dropped=[*beside, *dropped]
    )


def named(
    selected: Mapping[str, torch.Tensor], module: nn.Module
) -> tuple[foreign.State, list[str]]:
    """An encoder's tensors under the names of `module`, positions resampled to its grid.

    Args:
        selected: tensors of one encoder by their names in a checkpoint, as of `foreign.select`.
        module: what is to take them; whether they fit is not checked.

    Returns:
        The tensors, and the names of those that are no part of an encoder.
    """
    chosen = dict(selected)
    beside: list[str] = []
    if hub_names.recognise(chosen):
        chosen, beside = hub_names.convert(chosen)
    prefix = vit.prefix_tokens(module)
    embedded = prefix if not getattr(module, "no_embed_class", False) else 0
    state, dropped = foreign.convert(chosen, class_in_pos_embed=embedded > 0)
    if "pos_embed" in state and "pos_embed" in module.state_dict():
        grid: Any = module.get_submodule("patch_embed").grid_size
        state["pos_embed"] = foreign.resample_positions(state["pos_embed"], grid, embedded)
    return state, [*beside, *dropped]


def _fresh(arch: str, seed: int) -> _Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = vit.build(arch)
    return _Loaded(module=module, name=f"{names.FRESH}{arch}", info=_timm_info(arch, module))


def _timm_info(arch: str, module: nn.Module) -> export.Info:
    made_for = vit.input_of(module)
    prefix = vit.prefix_tokens(module)
    pooling = getattr(module, "global_pool", "")
    cls = prefix > 0 and pooling in ("token", "")
    return export.Info(
        arch=arch,
        kwargs=vit.defaults(arch),
        image_size_px=made_for.image_size_px,
        mean=made_for.mean,
        std=made_for.std,
        embedding="cls" if cls else pooling if isinstance(pooling, str) and pooling else "pooled",
        prefix_tokens=prefix,
    )


def _image_size(loaded: _Loaded, asked: int | None) -> int:
    module, native = loaded.module, loaded.info.image_size_px
    free = vit.takes_any_size(module)
    size = asked or (native if loaded.made_for or not free else IMAGE_SIZE_PX)
    patch = vit.patch_px(module)
    if size % patch or (size != native and not free):
        need = f"multiples of {patch} px" if free else f"{native} px"
        raise errors.UsageError(
            f"{loaded.name} cannot take images of {size} px, only {need}.",
            f"--image-size {max(patch, size // patch * patch) if free else native}",
        )
    return size


def _identity(module: nn.Module, info: export.Info) -> str:
    """Hash the numbers themselves, so that the same weights in another file are the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    facts = {
        "arch": info.arch,
        "kwargs": dict(info.kwargs),
        "image_size_px": info.image_size_px,
        "mean": list(info.mean),
        "std": list(info.std),
        "embedding": info.embedding,
    }
    if info.input != "rgb":
        facts["input"] = info.input
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:12]
