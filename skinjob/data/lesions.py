"""Drawn skin lesions, to try every command without real data.

The two classes differ as lesions do by the ABC of the ABCD rule (Nachbar et al. 1994, "The ABCD
rule of dermatoscopy"): asymmetry, border irregularity, colour variegation. Each lesion has one
hidden severity, and its three traits scatter around it. The severities of the classes overlap: some
benign lesions are irregular, and some malignant lesions are regular.

They are drawings. What a network learns from them says nothing about skin.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from skinjob.console import progress
from skinjob.data.shapes import grid, noise, to_pixels, wavy
from skinjob.data.store import FOLDERS
from skinjob.errors import ImagesError

CLASSES = ("benign", "malignant")
DRAWING = 3  # raise it when the drawing changes: then images of an older skinjob are refused

# Beta parameters of the severity. Means 0.18 and 0.82: the classes overlap a little.
SEVERITY = {"benign": (2.0, 9.0), "malignant": (9.0, 2.0)}
TRAIT_SPREAD = 0.10  # standard deviation of a trait around its lesion's severity

SKIN = np.array(
    [(238, 203, 186), (165, 117, 92)], np.float32
)  # RGB of the lightest and the darkest tone
# The light that passes through pigment: factors on the RGB of the skin under it.
BROWN = np.array([(0.72, 0.58, 0.49), (0.46, 0.33, 0.28)], np.float32)
PATCHES = np.array(
    [
        (0.15, 0.12, 0.13),  # black
        (0.40, 0.44, 0.53),  # blue-grey
        (0.84, 0.44, 0.42),  # red
        (0.98, 0.92, 0.90),  # white, as a scar
        (0.80, 0.62, 0.48),  # tan
    ],
    np.float32,
)


def make_images(
    root: Path, *, num_train: int, num_test: int, seed: int = 0, size: int = 256
) -> None:
    """Writes `root/{train,test}/{benign,malignant}/NNNN.jpg`, num_train and num_test of each class.

    Image i of a class depends only on (seed, split, class, i) and *size*, in pixels per side. So a
    larger data set begins with the images of a smaller data set. The folder is built beside *root*
    and then renamed. If *root* already has the images of an equal call, nothing changes.

    Raises: ImagesError if *root* has other content.
    """
    readme = f"""Generated images: drawings, not photographs, of no one's skin.
Made by skinjob to try its commands. Good for nothing else.

drawing: {DRAWING}
seed: {seed}
size: {size} pixels
train: {num_train} of each class
test: {num_test} of each class
"""
    if _is_made(root, readme):
        return
    partial = root.parent / f".{root.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_tree(partial, (num_train, num_test), seed=seed, size=size)
        (partial / "README.txt").write_text(readme, encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:  # another process has just made it
            if not _is_made(root, readme):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_made(root: Path, readme: str) -> bool:
    """Returns whether *root* has these images. Raises: ImagesError if it has other content."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "README.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == readme:
        return True
    raise ImagesError(
        f"{root}: the demo writes its images to this folder, but it has other content",
        f"mv {root} {root}.old",
    )


def _write_tree(root: Path, counts: tuple[int, int], *, seed: int, size: int) -> None:
    wanted = []
    for (s, split), (c, label) in product(enumerate(FOLDERS), enumerate(CLASSES)):
        folder = root / split / label
        folder.mkdir(parents=True)
        wanted += [(folder / f"{i:04d}.jpg", label, (seed, s, c, i)) for i in range(counts[s])]

    def write_image(image: tuple[Path, str, tuple[int, ...]]) -> None:
        path, label, seeds = image
        draw_lesion(np.random.default_rng(seeds), label, size).save(path, quality=90)

    # Threads are enough, because numpy and Pillow release the interpreter lock.
    with (
        progress("drawing images", len(wanted), unit="images") as report,
        ThreadPoolExecutor(max_workers=4) as pool,
    ):
        for done, _ in enumerate(pool.map(write_image, wanted), start=1):
            report(done)


def draw_lesion(rng: np.random.Generator, label: str, size: int = 256) -> Image.Image:
    """Returns a drawn lesion of class *label*, RGB, *size* pixels per side."""
    severity = rng.beta(*SEVERITY[label])
    asymmetry, border, colour = np.clip(severity + rng.normal(0, TRAIT_SPREAD, 3), 0, 1)

    x, y = grid(size, rng.uniform(-0.12, 0.12, 2))
    strengths = np.r_[0.05, 0.02 + 0.15 * asymmetry, (0.01 + 0.18 * border) / np.arange(2, 12)]
    radius = np.float32(rng.uniform(0.55, 0.75)) * wavy(rng, np.arctan2(y, x), strengths)
    depth = radius - np.hypot(x, y) + np.float32(0.04 * border) * noise(rng, size, 20)
    cover = np.clip(depth / np.float32(rng.uniform(0.06, 0.15)) + np.float32(0.5), 0, 1)

    # Brown, darker in the middle; an asymmetric lesion is also darker on a side.
    side = rng.uniform(0, 2 * np.pi)
    lean = np.float32(0.8 * asymmetry) * (
        np.cos(side, dtype=np.float32) * x + np.float32(np.sin(side)) * y
    )
    darkness = np.clip(depth + lean + np.float32(rng.uniform(-0.1, 0.5)), 0, 1)
    pigment = BROWN[0][:, None, None] + darkness * (BROWN[1] - BROWN[0])[:, None, None]
    for patch in rng.permutation(PATCHES)[: rng.binomial(5, colour**1.5)]:
        share = np.clip(np.float32(1.5) * noise(rng, size, 7) - np.float32(0.3), 0, 0.9)
        pigment += share * (patch[:, None, None] - pigment)

    tone = SKIN[0] + np.float32(rng.beta(1.3, 2.2)) * (SKIN[1] - SKIN[0])
    shade = 1 + np.float32(0.03) * (noise(rng, size, 6) + noise(rng, size, size // 3))
    shade += np.float32(rng.uniform(-0.1, 0.1)) * x  # light from a side
    picture = tone[:, None, None] * shade * (1 + cover * (pigment - 1))  # (3, size, size)
    return Image.fromarray(to_pixels(picture))
