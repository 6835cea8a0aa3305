from __future__ import annotations


def embed() -> None:
    """Placeholder while the house is being built."""
