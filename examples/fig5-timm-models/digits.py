"""Write scikit-learn's handwritten digits as torchvision's ImageFolder: train/CLASS, test/CLASS.

python examples/fig5-timm-models/digits.py FOLDER [IMAGES]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn import datasets

TEST_EVERY = 3
"""Of the images in their order, which are by writer, every third is for the test."""


def write(folder: Path, at_most: int | None = None) -> None:
    """Write the first `at_most` images, 8 x 8 px, 16 grey values."""
    digits = datasets.load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if number == at_most:
            return
        target = folder / ("test" if number % TEST_EVERY == 0 else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        pixels = (image * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").save(target / f"{number:04}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:3]))
