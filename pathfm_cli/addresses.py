"""Addresses: which carry secrets, and any text as it may be printed, without them."""

from __future__ import annotations

import re

_COLON = r"\b[a-z][a-z0-9+.-]+:/{1,2}"
"""Of a scheme; a path that was made of an address keeps one slash of the two."""
_USER = re.compile(rf"({_COLON})(?:[^\s/@:\[]*:(?!\d*(?:[/\s]|$))[^\n@]*@|[^\s/]*@)", re.IGNORECASE)
"""User and password; a key of S3 may hold slashes, a password spaces."""
_SIGNED = re.compile(
    r"(?:[?&;#]|%(?:25)*(?:3f|26|3b|23))"
    r"(?:x-amz-[a-z-]+|x-goog-[a-z-]+|sig|signature|token|access_token|awsaccesskeyid)"
    r"(?:=|%(?:25)*3d)\S*",
    re.IGNORECASE,
)
"""Parameters of signed addresses, of S3, Google and Azure, also where they are spelled as `%3F`."""
_QUERY = re.compile(r"(\bhttps?:/{1,2}[^\s?#]*)[?#]\S*", re.IGNORECASE)
_ADDRESS = re.compile(rf"{_COLON}", re.IGNORECASE)
SIGNS = "[@?#;&%]"
"""An address that `holds_secret` has at least one of these signs."""


def is_address(text: str) -> bool:
    """Whether a text is an address of any scheme, also one that `Path` has taken a slash of."""
    return bool(_ADDRESS.match(text))


def holds_secret(uri: str) -> bool:
    """Whether an address has a user, a signature or, on the web, a query: what may not be kept.

    A key of a bucket may hold a plain `?`.
    """
    scheme, _, rest = uri.partition("://")
    if scheme.lower().startswith("http") and ("?" in rest or "#" in rest):
        return True
    return "@" in rest.partition("/")[0] or bool(_USER.search(uri) or _SIGNED.search(uri))


def without_secrets(text: str) -> str:
    """Any text, such as a message, with the addresses in it cut to what may be printed."""
    text = _USER.sub(r"\1", text)
    text = _QUERY.sub(r"\1?...", text)
    return _SIGNED.sub("?...", text)
