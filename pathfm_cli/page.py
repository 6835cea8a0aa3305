"""HTML pages that are one file: no network, no foreign script, nothing written over by mistake."""

from __future__ import annotations

import base64
import contextlib
import html
import os
from pathlib import Path

from pathfm_cli import disk, errors

SHEET = '<meta name="generator" content="pathfm">'
"""By which a contact sheet of pathfm is known."""
REPORT = '<meta name="generator" content="pathfm report">'
"""By which a report of pathfm is known."""
_STYLES = "style-src 'unsafe-inline'"


def policy(*, scripts: bool) -> str:
    """The element that forbids to fetch anything, and to run scripts where there are none."""
    allowed = [_STYLES, *(["script-src 'unsafe-inline'"] if scripts else [])]
    rules = "; ".join(["default-src 'none'", "img-src data:", *allowed])
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def text(value: object) -> str:
    """Anything as text of a page: no markup, no end of an attribute, no direction of its own."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return html.escape(plain)


def image(data: bytes, width: int, height: int, alt: str = "") -> str:
    """An image element that carries its own pixels; `data` is a JPEG file."""
    encoded = base64.b64encode(data).decode()
    size = f'width="{width}" height="{height}"'
    return f'<img {size} alt="{text(alt)}" loading="lazy" src="data:image/jpeg;base64,{encoded}">'


def check(file: Path, mark: str, what: str, hint: str, *, overwrite: bool) -> None:
    """See that a page may be written: nothing is there, or an earlier page of its kind.

    Args:
        file: the page.
        mark: `SHEET` or `REPORT`.
        what: the page in words, as "contact sheet".
        hint: what else can be done.
        overwrite: let another file go, too.

    Raises:
        errors.OutputClash: it is another file, or a folder.
        errors.Unwritable: nothing can be written there.
    """
    disk.check_place(file)
    if file.is_dir():
        raise errors.OutputClash(f"{file} is a folder.", hint)
    if overwrite or not os.path.lexists(file):
        return
    ours = False
    if file.is_file():
        with contextlib.suppress(OSError), file.open("rb") as opened:
            ours = mark.encode() in opened.read(1024)
    if not ours:
        raise errors.OutputClash(f"{file} exists and is no {what} of pathfm.", hint)


def write(file: Path, document: str) -> None:
    """Write the page atomically."""
    with disk.atomic(file) as temporary:
        temporary.write_text(document, encoding="utf-8")
