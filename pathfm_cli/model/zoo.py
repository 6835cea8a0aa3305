"""Published encoders by short name: what to build, what to feed it, which output is the embedding.

The numbers are in `zoo.toml`. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pathfm_cli import config, errors

FILE = "file"
EMBEDDINGS = ("cls", "cls+mean")
"""Rules of published encoders: one vector an image."""
RULES = (*EMBEDDINGS, "patch")
"""Rules that may be asked for; `patch` is every patch token, a matrix an image."""
INTERPOLATIONS = ("bilinear", "bicubic")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One published encoder."""

    id: str
    """Short name."""
    family: str
    """Who trained it."""
    source: str
    """`timm:NAME`, `hf-hub:OWNER/NAME`, or `file` where weights are only read from a file."""
    arch: str
    """timm name without a tag."""
    dim: int
    """Width of the embedding."""
    licence: str
    """Of the weights."""
    get: str
    """Which file to download by hand."""
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the architecture; layers by name."""
    mean: Channels = IMAGENET_MEAN
    """Channel mean, for pixels in 0..1."""
    std: Channels = IMAGENET_STD
    """Channel deviation."""
    image_size_px: int = 224
    """Side of the input."""
    resize_px: int = 224
    """Shorter side before the centre crop, as the authors state it."""
    interpolation: str = "bilinear"
    """Of that resize."""
    embedding: str = "cls"
    """`cls`, or `cls+mean`: the class token beside the mean of the patch tokens."""
    prefix_tokens: int = 1
    """Class and register tokens."""
    gated: bool = False
    """Whether the hub asks for a log-in."""
    md5: str = ""
    """Of the file to download, where it is known."""

    def __post_init__(self) -> None:
        if self.embedding not in EMBEDDINGS or self.interpolation not in INTERPOLATIONS:
            raise errors.UsageError(f"zoo.toml: {self.id} has an unknown embedding or resize.")


@functools.cache
def entries() -> Mapping[str, Entry]:
    """All encoders by name, in the order of the file."""
    text = resources.files("pathfm_cli.model").joinpath("zoo.toml").read_text()
    found = {}
    for family, common in config.loads(text, "zoo.toml").items():
        models = common.pop("models")
        for name, own in models.items():
            values = {**common, **own, "id": name, "family": family}
            values["source"] = values.pop("from")
            arguments = values.pop("kwargs", {})
            found[name] = dataclasses.replace(config.build(Entry, values), kwargs=arguments)
    return found


def find(name: str) -> Entry | None:
    """The encoder of that name, if there is one."""
    return entries().get(name)


def suggestion(name: str) -> str | None:
    """The name that is closest to a mistyped one."""
    close = difflib.get_close_matches(name, entries(), n=1, cutoff=0.7)
    return close[0] if close else None


def check_rule(embedding: str | None) -> None:
    """Refuse an embedding rule that there is not; None is the encoder's own.

    Raises:
        errors.UsageError: it is none of `RULES`.
    """
    if embedding is not None and embedding not in RULES:
        raise errors.UsageError(
            f"--embedding {embedding} is none of {', '.join(RULES)}.",
            f"--embedding {(difflib.get_close_matches(embedding, RULES, 1) or ['cls+mean'])[0]}",
        )


def table() -> list[str]:
    """One line an encoder."""
    lines = [f"{'name':<18}{'dim':>5}  {'embedding':<10}{'weights':<17}licence"]
    for entry in entries().values():
        way = entry.source.partition(":")[0] + (" (log in)" if entry.gated else "")
        lines.append(f"{entry.id:<18}{entry.dim:>5}  {entry.embedding:<10}{way:<17}{entry.licence}")
    return [*lines, "any timm name and hf-hub:OWNER/NAME work too; more: pathfm models NAME"]


def page(entry: Entry) -> list[str]:
    """Everything about one encoder."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in entry.kwargs.items())
    load = "" if entry.source == FILE else f"--model {entry.id}, or "
    return [
        f"{entry.id}: {entry.arch}({arguments})",
        f"  embedding: {entry.embedding}, {entry.dim} numbers; {entry.prefix_tokens} prefix tokens",
        f"  input: {entry.image_size_px} px, mean {entry.mean}, std {entry.std}",
        f"  authors' transform: resize {entry.resize_px} {entry.interpolation}, centre crop",
        f"  licence: {entry.licence}",
        f"  weights: {entry.source}{', after a log-in' if entry.gated else ''}",
        f"  file: {entry.get}{f', md5 {entry.md5}' if entry.md5 else ''}",
        f"  load: {load}--model FILE --arch {entry.id}",
    ]
