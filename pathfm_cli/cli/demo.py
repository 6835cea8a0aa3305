from __future__ import annotations


def demo() -> None:
    """Placeholder while the house is being built."""
