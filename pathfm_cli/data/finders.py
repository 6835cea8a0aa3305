"""The ways to find the tissue of a slide: a network, a threshold, or what people drew.

A finder is cheap to make and to name (`key` goes into the artifact's settings); a network is loaded
when the first slide needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy import typing as npt
from shapely import geometry

from pathfm_cli import artifacts, errors
from pathfm_cli.data import geojson, otsu, outlines, polygons
from pathfm_cli.wsi import pyramid

if TYPE_CHECKING:
    from pathfm_cli.model import unet

METHODS = ("unet", "otsu")
"""What `--method` takes; the first is the default."""
OTSU_MPP = 8.0
THRESHOLD = 0.5
"""A pixel more probable than this is tissue."""
DOUBT_FROM = 0.05
"""Doubt is the mean over the pixels that are tissue with more than this probability."""
MAX_THUMBNAIL_PX = 64_000_000
COARSER = "train a coarser network: pathfm mask-train --mpp; or --method otsu --mpp"
"""What to do where a slide is too large for the network."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The tissue of one slide.

    Attributes:
        tissue: valid, level-0 pixels.
        doubt_bits: mean entropy of the pixels that may be tissue; None where nothing was guessed.
    """

    tissue: geometry.MultiPolygon
    doubt_bits: float | None


class Finder(Protocol):
    """Anything that finds tissue on a slide; thread-safe."""

    @property
    def method(self) -> str:
        """Goes into the column `tissue_method`."""

    @property
    def key(self) -> Mapping[str, Any]:
        """JSON values of everything that shapes the result."""

    def find(self, slide: pyramid.Slide, reader: pyramid.Reader) -> Found:
        """Find the tissue; raises errors.SlideError."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Otsu:
    """A threshold on the colour of stain, see `otsu.py`."""

    mpp: float = OTSU_MPP
    """Resolution of the thumbnail, um/px."""
    cleaning: polygons.Cleaning = dataclasses.field(default_factory=polygons.Cleaning)
    method = "otsu"

    def __post_init__(self) -> None:
        if not 0.5 <= self.mpp <= 64:
            raise errors.UsageError(
                f"mpp {self.mpp:g} is no thumbnail: between 0.5 and 64 um/px.", "--mpp 8"
            )

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Finder`."""
        return {"mpp": self.mpp, "cleaning": dataclasses.asdict(self.cleaning)}

    def find(self, slide: pyramid.Slide, reader: pyramid.Reader) -> Found:
        """See `Finder`."""
        rgb = thumbnail(slide, reader, self.mpp, "use a coarser --mpp")
        return Found(_outlined(otsu.foreground(rgb, self.mpp), slide, self.cleaning), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """The network of `model/unet.py`, at the resolution that it was trained for.

    Raises:
        errors.InputError: `weights` is no `segmenter` artifact, or of no resolution.
    """

    weights: Path | None = None
    """A `segmenter` artifact; None means the one in the package."""
    device: str = "auto"
    """Where it runs; does not count in `key`."""
    cleaning: polygons.Cleaning = dataclasses.field(default_factory=polygons.Cleaning)
    method = "unet"

    def __post_init__(self) -> None:
        self.mpp  # noqa: B018 - a wrong file is found before the first slide

    @functools.cached_property
    def header(self) -> artifacts.Header:
        """Of the weights."""
        return artifacts.read_header(self.weights or SHIPPED, "segmenter")

    @property
    def mpp(self) -> float:
        """Resolution of the thumbnail, um/px."""
        mpp = self.header.settings.get("mpp")
        if not isinstance(mpp, int | float) or not 0.5 <= mpp <= 64:
            raise errors.InputError(
                f"{self.weights or SHIPPED} does not say a resolution from 0.5 to 64 um/px.",
                "pathfm mask-train makes one",
            )
        return float(mpp)

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Finder`."""
        return {
            "mpp": self.mpp,
            "weights": self.header.id,
            "cleaning": dataclasses.asdict(self.cleaning),
        }

    @functools.cached_property
    def network(self) -> unet.Segmenter:
        """Loaded at first use.

        Raises:
            errors.InputError: the weights are damaged.
            errors.UsageError: no such device.
        """
        from pathfm_cli.model import unet

        return unet.load(self.weights or SHIPPED, self.device)

    def find(self, slide: pyramid.Slide, reader: pyramid.Reader) -> Found:
        """See `Finder`."""
        from pathfm_cli.model import unet

        network = self.network
        probability = network.probability(thumbnail(slide, reader, network.mpp, COARSER))
        unsure = probability > DOUBT_FROM
        doubt = float(unet.entropy_bits(probability[unsure]).mean()) if unsure.any() else 0.0
        return Found(_outlined(probability > THRESHOLD, slide, self.cleaning), doubt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """Outlines that people drew: FOLDER/SLIDE.geojson.

    Raises:
        errors.UsageError: there is no such folder, or it holds no GeoJSON.
    """

    folder: Path
    include: tuple[str, ...] = ()
    """Classes that are tissue; empty means all that are not excluded."""
    exclude: tuple[str, ...] = outlines.EXCLUDED
    """All classes whose area is taken away."""
    method = "annotations"

    def __post_init__(self) -> None:
        if not outlines.files(self.folder):
            raise errors.UsageError(
                f"{self.folder} holds no annotations.", "--annotations DIR with DIR/SLIDE.geojson"
            )

    @functools.cached_property
    def key(self) -> Mapping[str, Any]:
        """See `Finder`."""
        total = hashlib.sha256()
        for file in outlines.files(self.folder):
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").digest()
            total.update(file.name.encode() + b"\0" + found)
        return {
            "annotations": total.hexdigest()[:12],
            "include": list(self.include),
            "exclude": list(self.exclude),
        }

    def find(self, slide: pyramid.Slide, reader: pyramid.Reader) -> Found:
        """See `Finder`."""
        names = [geojson.file_for(self.folder, slide.slide, end) for end in outlines.SUFFIXES]
        file = next((name for name in names if name.is_file()), None)
        if file is None:
            raise errors.SlideError(f"{slide.slide}: {names[0]} does not exist")
        tissue = outlines.read(file, self.include, self.exclude)
        return Found(outlines.within(tissue, slide.width_px0, slide.height_px0, file), None)


SHIPPED = Path(__file__).parents[1] / "model" / "tissue_unet.safetensors"
"""Weights in the package; named here too so that they are found without importing torch."""


def choose(
    method: str | None = None,
    mpp: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    annotations: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    cleaning: polygons.Cleaning | None = None,
) -> Finder:
    """The finder that plain values name.

    Args:
        method: a name in `METHODS`; None means the first, or `annotations` where they are given.
        mpp: resolution of the thumbnail; None means the method's own.
        weights: for `unet`.
        device: for `unet`; None means `auto`.
        annotations: folder of GeoJSON; takes the place of a method.
        include: classes of the annotations that are tissue.
        exclude: classes that are not, besides those of `outlines.EXCLUDED` that `include` does
            not name.
        cleaning: what of a mask is kept; None means the defaults.

    Raises:
        errors.UsageError: the values do not go together, or no file has such a class.
        errors.InputError: `weights` is no `segmenter` artifact.
    """
    if annotations is not None:
        others: dict[str, object] = {
            "--method": method,
            "--mpp": mpp,
            "--weights": weights,
            "--device": device,
        }
        others |= {"--min-object, --min-hole and --tolerance": cleaning}
        _refuse("--annotations takes the place of", others)
        return _drawn(Path(annotations), tuple(include), tuple(exclude))
    cleaning = cleaning or polygons.Cleaning()
    _refuse("only --annotations takes", {"--include": include, "--exclude": exclude})
    if method == "otsu":
        _refuse("--method otsu takes no", {"--weights": weights})
        return Otsu(mpp=OTSU_MPP if mpp is None else mpp, cleaning=cleaning)
    if method not in (None, "unet"):
        raise errors.UsageError(
            f"There is no method {method} to find tissue.", f"--method {' or '.join(METHODS)}"
        )
    found = UNet(
        weights=Path(weights) if weights else None, device=device or "auto", cleaning=cleaning
    )
    if mpp is not None and mpp != found.mpp:
        raise errors.UsageError(
            f"The network was trained for thumbnails of {found.mpp:g} um/px, not {mpp:g}.",
            "leave --mpp away, or train one: pathfm mask-train --mpp",
        )
    return found


@contextlib.contextmanager
def side_by_side(finder: Finder) -> Iterator[None]:
    """While several slides are looked at together, each takes one core."""
    if isinstance(finder, UNet):
        from pathfm_cli.model import unet

        with unet.one_thread():
            yield
    else:
        yield


def thumbnail(
    slide: pyramid.Slide, reader: pyramid.Reader, mpp: float, advice: str
) -> npt.NDArray[np.uint8]:
    """The whole slide at `mpp`, (H, W, 3) uint8; `advice` ends the error of one too large.

    Raises:
        errors.SlideError: it cannot be read, or has more than `MAX_THUMBNAIL_PX` pixels.
    """
    if slide.width_px0 * slide.height_px0 * (slide.mpp / mpp) ** 2 > MAX_THUMBNAIL_PX:
        raise errors.SlideError(
            f"{slide.slide}: a thumbnail at {mpp:g} um/px has more than"
            f" {MAX_THUMBNAIL_PX / 1e6:.0f} million pixels; {advice}"
        )
    return reader.read_thumbnail(slide, mpp)


def _drawn(folder: Path, include: tuple[str, ...], exclude: tuple[str, ...]) -> Drawn:
    """Outlines of the classes asked for, which must be there and not contradict each other."""
    if both := sorted(set(include) & set(exclude)):
        raise errors.UsageError(
            f"The class {both[0]} is both included and excluded.", "name it once"
        )
    kept = (name for name in outlines.EXCLUDED if name not in include)
    finder = Drawn(folder=folder, include=include, exclude=(*kept, *exclude))
    asked = [*include, *exclude]
    if asked:
        there: set[str] = set()
        for file in outlines.files(folder):
            # A file that cannot be read becomes the error of its slide.
            with contextlib.suppress(errors.SlideError):
                there |= outlines.classes(file)
        for name in asked:
            if name not in there:
                known = ", ".join(sorted(each or "(no class)" for each in there)) or "no area"
                raise errors.UsageError(
                    f"No outline in {folder} is of the class {name or '(no class)'}.",
                    f"there are: {known}",
                )
    return finder


def _outlined(
    mask: npt.NDArray[np.bool_], slide: pyramid.Slide, cleaning: polygons.Cleaning
) -> geometry.MultiPolygon:
    scale_px0 = (slide.width_px0 / mask.shape[1], slide.height_px0 / mask.shape[0])
    return polygons.from_mask(mask, scale_px0, slide.mpp, cleaning)


def _refuse(why: str, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None and value != ()]
    if given:
        raise errors.UsageError(f"{why[0].upper()}{why[1:]} {given[0]}.", "pathfm mask --help")
