"""pathfm: train and evaluate pathology foundation models, from slides where they lie."""

__version__ = "0.1.0"
