from __future__ import annotations


def doctor() -> None:
    """Placeholder while the house is being built."""
