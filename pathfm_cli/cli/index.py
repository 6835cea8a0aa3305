from __future__ import annotations


def index() -> None:
    """Placeholder while the house is being built."""
