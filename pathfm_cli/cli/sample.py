from __future__ import annotations


def sample() -> None:
    """Placeholder while the house is being built."""
