from __future__ import annotations


def probe() -> None:
    """Placeholder while the house is being built."""
