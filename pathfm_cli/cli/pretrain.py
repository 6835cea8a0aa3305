from __future__ import annotations


def pretrain() -> None:
    """Placeholder while the house is being built."""
