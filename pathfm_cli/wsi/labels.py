"""Which images of a file are no scan: photographs of the glass slide's label, macros, overviews.

They may show a patient's name, so they are told by what the file says of them before a level is
chosen, and are not decoded. Aperio writes the word in the second line of ImageDescription, and as
NewSubfileType 9 for a macro, 1 for a label; but 1 is what pyramid levels have elsewhere.
"""

from __future__ import annotations

import re

from pathfm_cli.wsi import tiff

LABEL_BYTES = 16 << 10
"""Of a description, so much is searched: a file may have 1,024, each takes up to 6 ms."""

_MACRO_BIT = 8
_WORDS = ("label", "macro", "overview", "thumbnail", "barcode")
_WORD = (
    r"(?:slide|barcode)?(?:label|macro|overview|thumbnail|barcode(?!\s*[:=]))"
    r"(?:s|images?|photo|picture)?"
)
_FREE = re.compile(rf"(?<![a-z]){_WORD}(?![a-z])", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:type|name|kind|role|title|description)[\"']?\s{0,9}[=:>]\s{0,9}[\"']?\s{0,9}"
    rf"(?:slide[\s_-])?{_WORD}[\s_-]?(?:image|photo|picture)?\s{{0,9}}[\"'<]",
    re.IGNORECASE,
)


def is_label(directory: tiff.Directory) -> bool:
    """Whether a file says of an image that it is a label, macro, overview, thumbnail or barcode."""
    if directory.number(tiff.NEW_SUBFILE_TYPE) & _MACRO_BIT:
        return True
    texts = (directory.start(tag, LABEL_BYTES) for tag in (tiff.IMAGE_DESCRIPTION, tiff.PAGE_NAME))
    return any(_says_so(text) for text in texts)


def names_one(text: str) -> bool:
    """Whether XML or JSON holds a name, type or title that is one of the words and no more."""
    return bool(_NAMED.search(_parted(text)))


def is_name_of_one(name: str) -> bool:
    """Whether one of the words stands anywhere in the name of an image."""
    return bool(_FREE.search(_parted(name)))


def _says_so(text: str) -> bool:
    """Whether a description does: words in free text, or the name in XML or JSON.

    Not `KEY = VALUE` fields behind `|`, which tell of the whole slide (`|Barcode = 7`), and no OME
    document, which names every image of its file.
    """
    plain = text.lower()
    if "<OME" in text[:2000] or not any(word in plain for word in _WORDS):
        return False
    if text.lstrip().startswith(("<", "{")):
        return names_one(text)
    free = []
    for line in text.splitlines():
        first, *fields = line.split("|")
        free += [first, *(field for field in fields if "=" not in field)]
    return is_name_of_one("\n".join(free))


def _parted(text: str) -> str:
    """`SlideLabel` as two words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
