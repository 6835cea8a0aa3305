from __future__ import annotations


def show() -> None:
    """Placeholder while the house is being built."""
