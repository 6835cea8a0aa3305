"""Export the encoder that a run started from.

PYTHONPATH=examples/learning-proof python examples/studies/fresh.py RUN OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import evaluate

if __name__ == "__main__":
    evaluate.untrained(Path(sys.argv[1]), Path(sys.argv[2]))
