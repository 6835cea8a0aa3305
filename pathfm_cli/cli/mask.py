from __future__ import annotations


def mask() -> None:
    """Placeholder while the house is being built."""
