"""`pathfm doctor`: is this machine fit?"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

from pathfm_cli.cli import options, output

PACKAGES = (
    "torch timm torchvision zarr numcodecs tiffslide tifffile imagecodecs simplejpeg obstore "
    "fsspec pillow shapely polars scikit-learn safetensors numpy typer rich"
).split()
EXTRAS = {
    "plots": "matplotlib",
    "dicom": "pydicom",
    "openslide": "openslide",
    "segment": "transformers",
}
USES = {
    "plots": "pictures of metrics",
    "dicom": "DICOM slides",
    "openslide": "NDPI, MRXS, SCN, BIF, Philips slides; local only, slower",
    "segment": "segment --decoder mask2former",
}
SHM = "/dev/shm"  # noqa: S108 - the system's own; nothing is written there
SHM_NEEDED_GIB = 1.0
"""Loader workers hand batches over in shared memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One finding; `state` is ok, warn or fail."""

    name: str
    state: str
    detail: str


def doctor(json: options.Json = False) -> int:
    r"""Check versions, devices, codecs, memory and folders; exit 1 if something is unfit.

    \b
    pathfm doctor
    pathfm doctor --json | jq .failed
    """
    checks = list(_all())
    failed = [check.name for check in checks if check.state == "fail"]
    sink = output.Sink(json=json)
    if json:
        report = {check.name: {"state": check.state, "detail": check.detail} for check in checks}
        sink.plan({"failed": failed, "checks": report})
    else:
        for check in checks:
            sink.line(f"{check.state:4}  {check.name}: {check.detail}")
        sink.line("fit" if not failed else f"unfit: {', '.join(failed)}")
    return 1 if failed else 0


def _all() -> Iterator[Check]:
    from importlib import util

    yield Check("python", "ok" if sys.version_info >= (3, 11) else "fail", sys.version.split()[0])
    for name in PACKAGES:
        yield _package(name)
    for extra, module in EXTRAS.items():
        present = util.find_spec(module) is not None
        state = "present" if present else f"absent: pip install 'pathfm[{extra}]'"
        hint = f"{state} ({USES[extra]})"
        yield Check(f"extra {extra}", "ok" if present else "warn", hint)
    yield _tried("encoder", _encoder)
    yield _tried("device", _device)
    yield _tried("jpeg", _jpeg)
    yield _region_decoder()
    yield _tried("jpeg2000", _jpeg2000)
    yield _tried("store", _store)
    yield _shm()
    yield _tried("temporary folder", _temporary)
    yield Check("cores", "ok", str(os.cpu_count()))
    data = os.environ.get("PATHFM_DATA")
    if data:
        state = "ok" if os.path.isdir(data) else "fail"
        yield Check("PATHFM_DATA", state, data if state == "ok" else f"{data} is no folder")


def _package(name: str) -> Check:
    from importlib import metadata

    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "fail", "absent: pip install --force-reinstall pathfm")


def _tried(name: str, look: Callable[[], str]) -> Check:
    """A look that raises anything at all is a finding, not a crash of the doctor."""
    try:
        return Check(name, "ok", look())
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}")


def _encoder() -> str:
    from pathfm_cli.model import vit

    module = vit.build("vit_tiny_patch16_224", depth=1)
    return f"timm builds a ViT of {sum(p.numel() for p in module.parameters()):,} parameters"


def _device() -> str:
    import torch

    from pathfm_cli.model import device

    chosen = device.pick("auto")
    if chosen.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return str(chosen)


def _jpeg() -> str:
    import numpy as np
    import simplejpeg

    grey = np.full((16, 16, 3), 128, np.uint8)
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey, quality=95))
    if abs(int(back.mean()) - 128) > 1:
        raise RuntimeError(f"grey 128 decodes to {back.mean():.0f}")
    return "simplejpeg decodes"


def _region_decoder() -> Check:
    from pathfm_cli.wsi import roi

    if roi.AVAILABLE:
        return Check("jpeg regions", "ok", "the extension decodes parts of tiles")
    hint = "install a C compiler and libjpeg-turbo's headers, then pathfm again"
    return Check("jpeg regions", "warn", f"no extension, whole tiles are decoded: {hint}")


def _jpeg2000() -> str:
    import imagecodecs
    import numpy as np

    grey = np.full((16, 16, 3), 128, np.uint8)
    back = imagecodecs.jpeg2k_decode(imagecodecs.jpeg2k_encode(grey, level=0))
    if not (back == grey).all():
        raise RuntimeError("lossless JPEG 2000 does not return the same pixels")
    return "imagecodecs decodes"


def _store() -> str:
    from obstore import store

    with tempfile.TemporaryDirectory() as folder:
        local = store.LocalStore(folder)
        local.put("x", b"abc")
        if bytes(local.get_range("x", start=1, end=3)) != b"bc":
            raise RuntimeError("a byte range came back wrong")
    return "obstore reads byte ranges"


def _shm() -> Check:
    if not os.path.isdir(SHM):
        return Check("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(SHM).free / 2**30
    state = "ok" if free >= SHM_NEEDED_GIB else "warn"
    hint = "" if state == "ok" else "; small for loader workers (docker run --shm-size=8g)"
    return Check("shared memory", state, f"{free:.1f} GiB free{hint}")


def _temporary() -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
        free = shutil.disk_usage(os.path.dirname(file.name)).free / 2**30
    return f"{tempfile.gettempdir()}, {free:.0f} GiB free"
