"""A tree of images in class folders: what is in it, what is wrong with it, and its fingerprint.

    <root>/train/<class>/*.jpg        <root>/test/<class>/*.jpg

Pillow alone: it runs on a login node without torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from skinjob.console import progress
from skinjob.errors import ImagesError
from skinjob.files import replacing

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The file types that torchvision's ImageFolder takes."""

COLUMNS = ("path", "split", "label", "bytes", "sha256")
AT_ONCE = 1000  # images that wait for a thread: a pool holds on to all that it is given
SHOWN = 3  # faulty images named in an error; the count says how many there are


@dataclass(frozen=True, slots=True)  # there may be 400,000 of them
class ImageFile:
    """One image: where it is, what it shows, and the digest of its bytes."""

    path: str
    """Below the root, with forward slashes: train/benign/1.jpg."""
    split: str
    label: int
    """Position of its class in the sorted class names."""
    bytes: int
    sha256: str

    def read(self, root: Path) -> Image.Image:
        """Returns the image in RGB.

        Raises: ImagesError when its bytes are not those of the scan.
        """
        try:
            content = (root / self.path).read_bytes()
        except OSError as fault:
            raise ImagesError(f"{root / self.path}: {fault.strerror}", f"ls {root}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ImagesError(
                f"{root / self.path} has changed since the sweep was submitted",
                "submit again, under another --name, to train on the images as they are now",
            )
        return decode(content)


@dataclass(frozen=True)
class ImageSet:
    """The images of a tree, in the order of their paths."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    num_ignored: int = 0
    """Files in class folders that are not images by their name."""

    def split(self, name: str) -> tuple[ImageFile, ...]:
        return tuple(file for file in self.files if file.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class."""
        found = Counter((file.split, file.label) for file in self.files)
        return {
            split: {name: found[split, label] for label, name in enumerate(self.classes)}
            for split in SPLITS
        }

    def fingerprint(self, split: str | None = None) -> str:
        """Returns a SHA-256 over every path below the root and its content, of one split or all."""
        digest = hashlib.sha256()
        for file in self.files if split is None else self.split(split):
            digest.update(f"{file.path}\0{file.sha256}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def scan(root: Path) -> ImageSet:
    """Returns the images below *root*, each opened and decoded; shows a bar on a terminal.

    Raises: ImagesError when the tree is not one of class folders, when the classes of train and
    test differ, when a class has no image, or when an image does not open.
    """
    classes = _classes(root)
    listed = [(s, label, path) for s in SPLITS for label, path in _listing(root / s, classes)]
    entries = [entry for entry in listed if entry[2].suffix.lower() in SUFFIXES]
    found, faults = [], []
    with (
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        progress("checking images", len(entries)) as draw,
    ):
        results = (
            result
            for first in range(0, len(entries), AT_ONCE)
            for result in pool.map(_examine, [e[2] for e in entries[first : first + AT_ONCE]])
        )
        for done, ((split, label, path), result) in enumerate(
            zip(entries, results, strict=True), 1
        ):
            if isinstance(result, str):
                faults.append((path, result))
            else:
                found.append(ImageFile(path.relative_to(root).as_posix(), split, label, *result))
            draw(done)
    if faults:
        raise _faulty(faults, len(entries))
    images = ImageSet(root, classes, tuple(found), num_ignored=len(listed) - len(entries))
    _require_every_class(images)
    return images


def decode(content: bytes) -> Image.Image:
    """Returns an image file's first frame in RGB, without its transparency.

    Raises: whatever Pillow raises for bytes that are not a whole image.
    """
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit values to 255 on the way to RGB, which turns most of an image white.
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode == "P":
        image = image.convert(
            "RGBA"
        )  # palettes may have a transparent entry, which RGB warns about
    return image.convert("RGB")


def write_index(images: ImageSet, file: Path) -> None:
    """Writes images.csv: one row an image, in order, after a row of class names."""
    with (
        replacing(file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
    ):
        writer = csv.writer(rows)
        writer.writerow(COLUMNS)
        writer.writerows(
            (i.path, i.split, images.classes[i.label], i.bytes, i.sha256) for i in images.files
        )


def read_index(file: Path, root: Path, classes: tuple[str, ...]) -> ImageSet:
    """Returns the image set that `write_index` wrote; *classes* are sweep.json's.

    That no row is missing or another, the set's fingerprint tells.

    Raises: ImagesError, naming file and line, when it is missing or a row cannot be.
    """
    line = 0
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as content:
            rows = csv.reader(content)
            next(rows, None)
            files = []
            for path, split, name, num_bytes, sha256 in rows:
                line = rows.line_num
                if split not in SPLITS or not path.startswith(f"{split}/{name}/"):
                    raise ValueError(f"{path!r:.80} in {split!r:.80}, {name!r:.80}")
                files.append(ImageFile(path, split, classes.index(name), int(num_bytes), sha256))
    except OSError as fault:
        raise ImagesError(
            f"{file}: {fault.strerror}", f"ls {shlex.quote(str(file.parent))}"
        ) from None
    except (ValueError, csv.Error) as fault:
        raise ImagesError(
            f"{file}, after line {line}: {fault}", "skinjob submit --name ANOTHER"
        ) from None
    return ImageSet(root, classes, tuple(files))


def _classes(root: Path) -> tuple[str, ...]:
    layout = f"ls {shlex.quote(str(root))}   # wanted: train/<class>/*.jpg and test/<class>/*.jpg"
    for split in SPLITS:
        if not (root / split).is_dir():
            raise ImagesError(
                f"image folder {root}: no {split}/ in it"
                if root.is_dir()
                else f"image folder {root}: no such folder",
                layout if root.is_dir() else "skinjob submit --data FOLDER",
            )
    train, test = (
        {f.name for f in (root / s).iterdir() if f.is_dir() and f.name[0] != "."} for s in SPLITS
    )
    if train != test:
        only = ", ".join(
            sorted(f"train/{n}" for n in train - test) + sorted(f"test/{n}" for n in test - train)
        )
        raise ImagesError(
            f"image folder {root}: train and test have other classes: only one has {only}", layout
        )
    if len(train) < 2:
        raise ImagesError(
            f"image folder {root}: {len(train)} class folders in train/, 2 or more wanted",
            layout,
        )
    return tuple(sorted(train))


def _listing(folder: Path, classes: tuple[str, ...]) -> Iterator[tuple[int, Path]]:
    """Yields (label, path) of every file that is not hidden, in the order of the paths."""
    for label, name in enumerate(classes):
        paths = []
        for parent, folders, files in os.walk(folder / name, followlinks=True):
            folders[:] = [f for f in folders if not f.startswith(".")]
            paths += [Path(parent, file) for file in files if not file.startswith(".")]
        yield from ((label, path) for path in sorted(paths))


def _examine(path: Path) -> tuple[int, str] | str:
    """Returns an image's size and digest, or what is wrong with it."""
    try:
        content = path.read_bytes()
        decode(content)
    except (
        Exception
    ) as fault:  # Pillow's decoders raise all kinds; each means that the image does not open
        return "empty file" if path.is_file() and path.stat().st_size == 0 else _reason(fault)
    return len(content), hashlib.sha256(content).hexdigest()


def _reason(fault: Exception) -> str:
    if isinstance(fault, UnidentifiedImageError):
        return "not an image"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror.lower()
    return str(fault).split("\n")[0] or type(fault).__name__


def _faulty(faults: list[tuple[Path, str]], num_images: int) -> ImagesError:
    named = ", ".join(f"{path} ({reason})" for path, reason in faults[:SHOWN])
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    paths = " ".join(shlex.quote(str(path)) for path, _ in faults[:SHOWN])
    return ImagesError(
        f"{len(faults)} of {num_images} images do not open: {named}{more}",
        f"copy them again, or take them out of the tree: mkdir -p bad && mv {paths} bad/",
    )


def _require_every_class(images: ImageSet) -> None:
    for split, classes in images.counts().items():
        for name, count in classes.items():
            if count == 0:
                folder = images.root / split / name
                raise ImagesError(
                    f"{folder}: no image in it ({', '.join(SUFFIXES)})",
                    f"ls {shlex.quote(str(folder))}",
                )
