"""Measures which changed copies of an image `skinjob audit` finds, and which pairs it believes.

Example:
  python tests/benchmarks/copies.py --data skin_cancer
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from skinjob.data.audit import (
    LEAST_ALIKE,
    MOST_BITS,
    NUM_BITS,
    _agreement,
    _alike,
    _signs,
    sketch,
)
from skinjob.data.scan import scan


def saved(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Returns an image without *share* of each side."""
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 30": lambda image: saved(image, 30),
    "JPEG quality 10": lambda image: saved(image, 10),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "1.3 times brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "0.6 times brighter": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "1.4 times the contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "without 3 % of two sides": lambda image: image.crop(
        (image.width * 3 // 100, image.height * 3 // 100, image.width, image.height)
    ),
    "without 5 % of all sides": lambda image: cropped(image, 0.05),
    "turned by 3°": lambda image: cropped(image.rotate(3), 0.05),
}


def main() -> None:
    """Prints the share of copies that are found, for each change; then the pairs in the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument("--every", type=int, default=5, help="change each n-th image")
    options = parser.parse_args()
    images = scan(options.data)
    assert images.sketches is not None
    grey = images.sketches["grey"]
    signs = _signs(grey)
    places = range(0, len(images.files), options.every)
    originals = [images.files[place].read(images.store) for place in places]
    for name, change in CHANGES.items():
        changed = np.stack([sketch(change(image))["grey"] for image in originals])
        same = np.diag(_agreement(_signs(changed), signs[:: options.every]))
        bits, alike = (NUM_BITS - same) / 2, _alike(changed, grey[:: options.every])
        share = np.mean((bits <= MOST_BITS) & (alike >= LEAST_ALIKE))
        worst = f"bits {bits.max():.0f} at most, correlation {alike.min():.3f} at least"
        print(f"{name:<26}{100 * share:5.1f} % found of {len(bits)}; {worst}")
    pairs = np.array([*combinations(range(len(grey)), 2)])
    bits = (NUM_BITS - _agreement(signs, signs)[pairs[:, 0], pairs[:, 1]]) / 2
    near = pairs[bits <= MOST_BITS]
    alike = np.sort(_alike(grey[near[:, 0]], grey[near[:, 1]]))[::-1]
    num = int((alike >= LEAST_ALIKE).sum())
    print(f"{len(pairs):,} pairs: {len(near)} within {MOST_BITS} bits, {num} of them alike")
    print("correlations around the limit:", *np.round(alike[max(num - 3, 0) : num + 3], 3))


if __name__ == "__main__":
    main()
