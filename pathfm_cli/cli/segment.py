from __future__ import annotations


def segment() -> None:
    """Placeholder while the house is being built."""
