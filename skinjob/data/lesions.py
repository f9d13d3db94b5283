"""Generated images of skin lesions, to try every command without real data.

The two classes differ as lesions do by the ABC of the ABCD rule (Nachbar et al. 1994, "The ABCD
rule of dermatoscopy"): asymmetry, border irregularity, colour variegation. Each lesion draws one
hidden severity, and its three traits scatter around it. The severities of the classes overlap: some
benign lesions are irregular, some malignant ones are neat. With the traits known exactly, the best
threshold on their sum is right for 98 of 100 lesions; an image shows them less exactly.

They are drawings. Nothing learnt from them says anything about skin.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from skinjob.console import progress
from skinjob.errors import ImagesError

Array = NDArray[np.float32]

CLASSES = ("benign", "malignant")
SPLITS = ("train", "test")
DRAWING = 2  # raise it when the drawing changes, so that an older tree is not taken for a new one
JPEG_QUALITY = 90

# Beta parameters of the severity. Means 0.18 and 0.82: the classes overlap a little.
SEVERITY = {"benign": (2.0, 9.0), "malignant": (9.0, 2.0)}
TRAIT_SPREAD = 0.10  # standard deviation of a trait around its lesion's severity

# RGB of skin from light to dark, between which a tone is interpolated.
SKIN_TONES = np.array(
    [(238, 203, 186), (226, 181, 158), (203, 153, 126), (165, 117, 92)], np.float32
)

# What pigment lets through: factors on the RGB of the skin under it.
BROWN_LIGHT = np.array((0.72, 0.58, 0.49), np.float32)
BROWN_DARK = np.array((0.46, 0.33, 0.28), np.float32)
BENIGN_PATCHES = np.array([(0.38, 0.26, 0.21), (0.82, 0.68, 0.58)], np.float32)  # dark brown, tan
PATCHES = np.array(
    [
        (0.30, 0.19, 0.15),  # dark brown
        (0.15, 0.12, 0.13),  # black
        (0.40, 0.44, 0.53),  # blue-grey veil
        (0.84, 0.44, 0.42),  # red
        (0.98, 0.92, 0.90),  # white, as a scar
        (0.80, 0.62, 0.48),  # tan
    ],
    np.float32,
)

ANGLES = 1024  # samples of the outline, one every 0.35 degrees


@dataclass(frozen=True)
class Traits:
    """How far a lesion departs from a neat mole in each letter: 0 not at all, 1 as far as drawn."""

    asymmetry: float
    border: float
    colour: float


def make_images(
    root: Path, *, num_train: int, num_test: int, seed: int = 0, size: int = 256
) -> None:
    """Writes `root/{train,test}/{benign,malignant}/NNNN.jpg`, num_train and num_test of each class.

    Image i of a class depends on (seed, split, class, i) and *size* (pixels a side) alone, so a
    larger tree begins with the smaller one. The tree is built beside *root* and renamed, so *root*
    is whole or absent; one that this same request made is left as it is.

    Raises: ImagesError when *root* holds anything else.
    """
    counts = {"train": num_train, "test": num_test}
    readme = _readme(counts, seed=seed, size=size)
    if _is_made(root, readme):
        return
    partial = root.parent / f".{root.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_tree(partial, counts, seed=seed, size=size)
        (partial / "README.txt").write_text(readme, encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:  # not empty any more: another process was faster
            if not _is_made(root, readme):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw_lesion(rng: np.random.Generator, label: str, size: int = 256) -> Image.Image:
    """Returns one drawn lesion of class *label*, RGB, *size* pixels a side."""
    traits = draw_traits(rng, label)
    # Channels first: numpy multiplies (3, H, W) by (H, W) several times faster than the other way.
    picture = _skin(rng, size)  # (3, size, size) float32, 0 to 255
    picture *= _pigment(rng, traits, size)  # (3, size, size) float32, factor on skin
    light = _light(rng, size)  # (size, size) float32, factor
    hairs = _hairs(rng, size)  # (size, size) float32, 0 to 1
    picture += hairs * (np.float32(38) - picture)
    picture *= light
    channels_last = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(channels_last))


def draw_traits(rng: np.random.Generator, label: str) -> Traits:
    """Returns the traits of one lesion of class *label*: three values around one severity."""
    severity = rng.beta(*SEVERITY[label])
    asymmetry, border, colour = np.clip(severity + rng.normal(0, TRAIT_SPREAD, 3), 0, 1)
    return Traits(float(asymmetry), float(border), float(colour))


# The tree ------------------------------------------------------------------------------------


def _readme(counts: dict[str, int], *, seed: int, size: int) -> str:
    return f"""Generated images: drawings, not photographs, of no one's skin.
Made by skinjob to try its commands. Good for nothing else.

drawing: {DRAWING}
seed: {seed}
size: {size} pixels
train: {counts["train"]} of each class
test: {counts["test"]} of each class
"""


def _is_made(root: Path, readme: str) -> bool:
    """Returns whether *root* holds what was asked for; raises when it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "README.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == readme:
        return True
    raise ImagesError(
        f"{root}: making demo images there, but it holds something else already",
        f"mv {root} {root}.old",
    )


def _write_tree(root: Path, counts: dict[str, int], *, seed: int, size: int) -> None:
    for split, label in itertools.product(SPLITS, CLASSES):
        (root / split / label).mkdir(parents=True)
    wanted = [
        (split, label, i)
        for split, label in itertools.product(SPLITS, CLASSES)
        for i in range(counts[split])
    ]

    def write_image(image: tuple[str, str, int]) -> None:
        split, label, i = image
        rng = np.random.default_rng([seed, SPLITS.index(split), CLASSES.index(label), i])
        path = root / split / label / f"{i:04d}.jpg"
        draw_lesion(rng, label, size).save(path, quality=JPEG_QUALITY)

    # numpy and Pillow let go of the interpreter lock: threads help, without a process's start-up.
    with (
        progress("drawing images", len(wanted), unit="images") as report,
        ThreadPoolExecutor(max_workers=4) as pool,
    ):
        for done, _ in enumerate(pool.map(write_image, wanted), start=1):
            report(done)


# The drawing: everything below works in units of half the picture, -1 to 1 -------------------


@functools.lru_cache(maxsize=2)
def _grid(size: int) -> tuple[Array, Array]:
    """Returns x and y of every pixel, each (size, size)."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Returns smooth noise (size, size) of about unit variance with *cells* bumps a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _skin(rng: np.random.Generator, size: int) -> Array:
    """Returns bare skin (3, size, size), 0 to 255: a tone, mottled, with fine texture."""
    place = rng.beta(1.3, 2.2) * (len(SKIN_TONES) - 1)  # light tones are the more frequent
    lower = min(int(place), len(SKIN_TONES) - 2)
    tone = SKIN_TONES[lower] + (place - lower) * (SKIN_TONES[lower + 1] - SKIN_TONES[lower])
    tone = (tone + rng.normal(0, 3, 3)).astype(np.float32)
    mottle = 0.018 * _noise(rng, size, 6) + 0.012 * _noise(rng, size, 24)
    texture = 0.012 * _noise(rng, size, size // 3) + 0.010 * _noise(rng, size, size)
    redness = 0.02 * _noise(rng, size, 9)
    shade = 1 + mottle + texture
    colour: Array = np.stack([shade, shade - redness, shade - np.float32(0.8) * redness])
    colour *= tone[:, None, None]
    return colour


def _light(rng: np.random.Generator, size: int) -> Array:
    """Returns a lighting gradient (size, size) and, in a third of pictures, a dark rim."""
    x, y = _grid(size)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.10)
    light = 1 + np.float32(slope * np.cos(angle)) * x + np.float32(slope * np.sin(angle)) * y
    distance = x * x + y * y  # squared: 1 at the middle of a side, 2 in a corner
    light -= np.float32(rng.uniform(0, 0.09)) * distance
    if rng.random() < 0.10:  # the tube of the dermatoscope
        light *= np.clip((np.float32(rng.uniform(1.2, 1.7)) - distance) * 5, 0.06, 1)
    return light


def _outline(rng: np.random.Generator, traits: Traits) -> Array:
    """Returns the outline's radius at ANGLES angles, about a mean of 1, as a Fourier series."""
    harmonic = np.arange(1, 31)
    amplitude = np.zeros(len(harmonic))
    # Even harmonics look the same after half a turn; odd ones make one side unlike the other.
    amplitude[[1, 3]] = 0.05, 0.02
    amplitude[[2, 4]] = 0.015 + 0.13 * traits.asymmetry, 0.01 + 0.07 * traits.asymmetry
    notches = harmonic >= 5
    amplitude[notches] = (0.003 + 0.045 * traits.border**1.5) * (5 / harmonic[notches]) ** 1.2
    amplitude *= rng.uniform(0.5, 1.2, len(harmonic))
    phase = rng.uniform(0, 2 * np.pi, len(harmonic))
    theta = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    waves = np.cos(np.outer(theta, harmonic) + phase)  # (ANGLES, 30)
    return np.asarray(1 + waves @ amplitude, np.float32)


def _pigment(rng: np.random.Generator, traits: Traits, size: int) -> Array:
    """Returns what the lesion lets through (3, size, size): 1 where there is none."""
    x, y = _grid(size)
    middle = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    stretch = np.float32(rng.uniform(1.0, 1.25))
    radius = np.float32(rng.uniform(0.48, 0.68))
    # Across and along the lesion, 1 at its mean outline.
    u = (cos * (x - middle[0]) + sin * (y - middle[1])) / (radius * stretch)
    v = (cos * (y - middle[1]) - sin * (x - middle[0])) * stretch / radius

    distance = np.sqrt(u * u + v * v)
    turns = (np.arctan2(v, u) * np.float32(ANGLES / (2 * np.pi))).astype(np.int32) % ANGLES
    warp = _noise(rng, size, 10)
    depth = _outline(rng, traits)[turns] - distance + np.float32(0.02 + 0.05 * traits.border) * warp
    depth += np.float32(0.045 * traits.border) * _noise(rng, size, 26)  # tears that no radius draws
    # A mole fades out evenly; an irregular border is sharp here and washed out there.
    uneven = np.float32(0.5 * traits.border)
    fade = np.float32(rng.uniform(0.05, 0.11)) * np.exp(uneven * _noise(rng, size, 4))
    cover = 1 / (1 + np.exp(np.clip(-4 * depth / fade, -30, 30)))  # (size, size), 0 to 1

    factor = _base_colour(rng, traits, depth, u, v)  # (3, size, size)
    _add_patches(rng, traits, factor, u, v, warp)
    _add_network(rng, factor, size)
    factor -= 1
    factor *= cover
    factor += 1
    return factor


def _base_colour(
    rng: np.random.Generator, traits: Traits, depth: Array, u: Array, v: Array
) -> Array:
    """Returns brown (3, size, size), darker inwards, and darker to one side where asymmetric."""
    side = rng.uniform(0, 2 * np.pi)
    lean = np.float32(0.55 * traits.asymmetry)
    darkness = np.float32(rng.uniform(0.1, 0.5)) * (depth - np.float32(0.4))
    darkness += np.float32(rng.uniform(0.15, 0.75))
    darkness += lean * (np.float32(np.cos(side)) * u + np.float32(np.sin(side)) * v)
    darkness = np.clip(darkness, 0, 1.15)
    light = BROWN_LIGHT + rng.normal(0, 0.02, 3).astype(np.float32)
    brown: Array = darkness * (BROWN_DARK - BROWN_LIGHT)[:, None, None]
    brown += light[:, None, None]
    return brown


def _add_patches(
    rng: np.random.Generator, traits: Traits, factor: Array, u: Array, v: Array, warp: Array
) -> None:
    """Blends patches of other colours into *factor*: none to six, by the colour trait."""
    number = rng.binomial(6, 0.08 + 0.72 * traits.colour)
    ragged = np.float32(0.28) * (warp + _noise(rng, factor.shape[-1], 20))
    palette = PATCHES if traits.colour > 0.45 else BENIGN_PATCHES
    for colour in palette[rng.permutation(len(palette))[:number]]:
        angle, reach = rng.uniform(0, 2 * np.pi), 0.75 * np.sqrt(rng.random())
        du = u - np.float32(reach * np.cos(angle))
        dv = v - np.float32(reach * np.sin(angle))
        width = np.float32(rng.uniform(0.25, 0.6))
        blob = 1 - np.sqrt(du * du + dv * dv) / width + ragged
        weight = np.float32(rng.uniform(0.4, 0.85)) * np.clip(blob * np.float32(1.2), 0, 1)
        factor += weight * (colour[:, None, None] - factor)


def _add_network(rng: np.random.Generator, factor: Array, size: int) -> None:
    """Darkens *factor* along the zero lines of noise: the net of pigment seen in a lesion."""
    lines = np.exp(-((_noise(rng, size, int(rng.integers(22, 34))) / np.float32(0.35)) ** 2))
    factor *= 1 - np.float32(rng.uniform(0.02, 0.22)) * lines


def _hairs(rng: np.random.Generator, size: int) -> Array:
    """Returns how much hair covers each pixel (size, size): none in most pictures, up to seven."""
    number = int(rng.integers(1, 8)) if rng.random() < 0.45 else 0
    if number == 0:
        return np.zeros((size, size), np.float32)
    # Pillow's lines have hard edges: drawn at twice the size and halved, they are smooth.
    mask = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(mask)
    combed = rng.uniform(0, np.pi)  # hairs on one patch of skin lie roughly one way
    step = np.linspace(-1, 1, 24)
    for _ in range(number):
        angle = combed + rng.normal(0, 0.4)
        along, bend = step * rng.uniform(0.4, 1.3), rng.normal(0, 0.25) * step**2
        x = rng.uniform(-0.9, 0.9) + along * np.cos(angle) - bend * np.sin(angle)
        y = rng.uniform(-0.9, 0.9) + along * np.sin(angle) + bend * np.cos(angle)
        points = np.stack([x, y], axis=1) * size + size
        width = max(1, round(rng.uniform(1.2, 3.2) * size / 256))
        ink = int(rng.integers(110, 220))
        pen.line([(float(a), float(b)) for a, b in points], fill=ink, width=width, joint="curve")
    return np.asarray(mask.reduce(2), np.float32) / np.float32(255)
