from __future__ import annotations


def odcorr() -> None:
    """Placeholder while the house is being built."""
