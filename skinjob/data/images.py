"""Images: how a file becomes pixels, and the list of the images of a sweep.

    <root>/train/<class>/*.jpg        <root>/test/<class>/*.jpg

This module needs only Pillow, so it runs on a login node without torch.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from skinjob.config import FieldError
from skinjob.console import printable
from skinjob.data.store import FOLDERS, ArchiveStore, Store, open_store
from skinjob.errors import ImagesError
from skinjob.files import csv_text, replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Split(str, Enum):
    """A part of the images, in the order of legends. images.csv says which split an image is in."""

    TRAIN = "train"
    VAL = "val"
    """Training images that are held out."""
    TEST = "test"

    def __str__(self) -> str:
        return self.value


FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF")
"""The formats that are read, with any suffix. One of Pillow's others starts Ghostscript."""

MIN_SIDE = 16  # pixels; a smaller image is a placeholder, such as 1 x 1 in a web page
MAX_RATIO = 16  # of the sides; a longer image fills the memory after its short side is scaled up
MAX_PIXELS = 2**28 // 3  # 256 MiB in RGB; above this Pillow warns of a decompression bomb
FLAT_LEVELS = 16  # of 256; an image with fewer shows nothing

KEPT_MOST_BYTES = 4 << 30
KEPT_SHARE = 8
"""Jobs keep the decoded images of a split on disk: at most so many bytes (28,000 images at
ResNet18's size), and at most an eighth of the free space."""

COLUMNS = ("path", "split", "label", "bytes", "sha256")


@dataclass(frozen=True, slots=True)  # there may be 400,000 of them
class ImageFile:
    """An image: its path, its class, and the digest of its bytes."""

    path: str
    """Relative to the root, with forward slashes: train/benign/1.jpg."""
    split: str
    label: int
    """The position of its class in the sorted class names."""
    bytes: int
    sha256: str
    copies: int | None = field(default=None, compare=False)
    """The number of the group of its copies, from 1; 0 without a copy; None if nobody looked."""

    def read(self, store: Store) -> Image.Image:
        """Returns the image in RGB.

        Raises: ImagesError if its bytes have changed since the scan.
        """
        path = store.root / self.path
        try:
            content = store.read(self.path)
        except OSError as error:
            words = f"{printable(str(path))}: {explain(error)}"
            raise ImagesError(words, store.look(self.path)) from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _changed(path)
        return decode(content)


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file or folder that cannot be used, and why. sweep.json uses these keys."""

    path: str
    """Relative to the root, with forward slashes."""
    fault: str


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set, in the order of their paths."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    left_out: tuple[str, ...] = field(default=(), compare=False)
    """A phrase for each kind of file or folder that is not used."""
    skipped: tuple[BadFile, ...] = field(default=(), compare=False)
    """Images that cannot be used."""
    flat: tuple[str, ...] = field(default=(), compare=False)
    """Paths of the images with almost a single grey level or colour."""
    sketches: NDArray[np.void] | None = field(default=None, compare=False, repr=False)
    """A sketch of each file (`audit.SKETCH`), if a scan made this set."""

    @cached_property
    def store(self) -> Store:
        """The files. Raises: ImagesError as `open_store`."""
        return open_store(self.root)

    def require_in_archive(self) -> None:
        """Checks the index of an archive against this list, which reads no image.

        Raises: ImagesError if an image is missing, or has another size than at the submit.
        """
        if isinstance(self.store, ArchiveStore):
            for file in self.files:
                if self.store.size(file.path) != file.bytes:
                    raise _changed(self.root / file.path)

    def split(self, name: str) -> tuple[ImageFile, ...]:
        return tuple(file for file in self.files if file.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class; splits without images are left out."""
        counts = Counter((file.split, file.label) for file in self.files)
        return {
            split.value: {name: counts[split, label] for label, name in enumerate(self.classes)}
            for split in Split
            if any(used == split for used, _ in counts)
        }

    def positive_label(self, name: str | None) -> int:
        """Returns the label of the positive class: the class *name*, by default the last class.

        Raises: FieldError if there is no such class.
        """
        if name is None:
            return len(self.classes) - 1
        if name not in self.classes:
            raise FieldError(
                "positive",
                f"positive class {name!r} is not one of {', '.join(map(printable, self.classes))}",
                f"skinjob submit --positive {printable(shlex.quote(self.classes[-1]))}",
            )
        return self.classes.index(name)

    def in_train_too(self) -> tuple[ImageFile, ...]:
        """Returns the test images that are also in train or val, byte for byte."""
        train = {file.sha256 for file in self.files if file.split != "test"}
        return tuple(file for file in self.split("test") if file.sha256 in train)

    def in_two_classes(self) -> tuple[ImageFile, ...]:
        """Returns the images that are also in another class, byte for byte."""
        labels = {file.sha256: file.label for file in self.files}
        in_two = {file.sha256 for file in self.files if file.label != labels[file.sha256]}
        return tuple(file for file in self.files if file.sha256 in in_two)

    def fingerprint(self, split: str | None = None) -> str:
        """Returns a SHA-256 over the path and content of all images, or of those of a split.

        It covers which images are in val.
        """
        digest = hashlib.sha256()
        for file in self.files if split is None else self.split(split):
            mark = "\0val" if file.split == Split.VAL else ""
            content = f"{file.path}\0{file.sha256}{mark}\n"
            digest.update(content.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def decode(content: bytes) -> Image.Image:
    """Returns the first frame of an image file in RGB, upright, without transparency.

    Raises: ValueError for a size that cannot be used, before a pixel is decoded; for bytes that are
    not a complete image, the exceptions of Pillow.
    """
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    _require_size(*image.size)
    image.load()
    with contextlib.suppress(
        Exception
    ):  # with damaged EXIF, the image is not rotated, as in a viewer
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _to_eight_bits(image).convert("L").convert("RGB")
    if image.mode == "P":
        image = image.convert("RGBA")  # to RGB, a palette with a transparent colour would warn
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Returns a grey image of 16 or 32 bits with its values scaled to the range 0 to 255.

    Pillow would clip them to 255: 16-bit images would be white, and floats of 0 to 1 black.

    Raises: ValueError if the values have an unknown range.
    """
    import numpy as np  # an import at the top would slow down every command

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN if any value is NaN
    scales = [1, 255, 65535] if image.mode == "F" else [255, 65535]
    # After a filter, some values may be outside the range. They are clipped.
    scale = next((scale for scale in scales if high <= 1.1 * scale), None)
    if scale is None or low < -0.1 * scale:
        usual = " or ".join(f"0 to {scale}" for scale in scales)
        is_finite = math.isfinite(high - low)
        actual = f"{low:g} to {high:g}" if is_finite else "numbers to NaN or infinity"
        raise ValueError(f"its values go from {actual}, expected is {usual}")
    if scale == 1:
        return image.point(lambda value: value * 255 + 0.5)
    image = image if image.mode == "F" else image.convert("I")
    return image if scale == 255 else image.point(lambda value: value / 256)


def is_flat(image: Image.Image) -> bool:
    """Returns whether an RGB image has almost a single grey level or colour."""
    extrema = cast(Sequence[tuple[float, float]], image.getextrema())  # of each channel
    return all(high - low < FLAT_LEVELS for low, high in extrema)


def write_index(images: ImageSet, file: Path) -> None:
    """Writes images.csv: a header, then a row for each image, in order.

    The column copies is there if copies were looked for; a cell is empty without a copy.
    """
    has_copies = all(image.copies is not None for image in images.files)
    with (
        replacing(file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
    ):
        writer = csv.writer(rows)
        writer.writerow([*COLUMNS, *(["copies"] if has_copies else [])])
        writer.writerows(
            (i.path, i.split, csv_text(images.classes[i.label]), i.bytes, i.sha256)
            + ((i.copies or "",) if has_copies else ())
            for i in images.files
        )


def read_index(file: Path, root: Path, classes: tuple[str, ...]) -> ImageSet:
    """Returns the image set that `write_index` wrote; *classes* are sweep.json's.

    Columns are read by name; without the column split, the split is the folder. The caller checks
    the fingerprint, which detects missing or changed rows.

    Raises: ImagesError with file and line if the file cannot be read or a row is impossible.
    """
    line = 0
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as content:
            rows = csv.reader(content)
            header = next(rows, [])
            if missing := set(COLUMNS) - {"split", *header}:
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            files = []
            for row in rows:
                line = rows.line_num
                cells = dict(zip(header, row, strict=True))
                path, name = cells["path"], cells["label"]
                top, _, below = path.partition("/")
                split = cells.get("split", top)
                folder, has_file, _ = below.partition("/")
                is_sound = has_file and top in FOLDERS and name in (folder, csv_text(folder))
                if (split != top and (top, split) != ("train", "val")) or not is_sound:
                    raise ValueError(
                        f"{path!r:.80} is not of split {split!r:.80}, class {name!r:.80}"
                    )
                label, num_bytes = classes.index(folder), int(cells["bytes"])
                files.append(ImageFile(path, split, label, num_bytes, cells["sha256"]))
    except OSError as error:
        fix = f"ls {shlex.quote(str(file.parent))}"
        raise ImagesError(f"{file}: {error.strerror}", fix) from None
    except (ValueError, csv.Error) as error:
        words = f"{file}, after line {line}: {error}"
        raise ImagesError(words, "skinjob submit --name ANOTHER") from None
    return ImageSet(root, classes, tuple(files))


def explain(error: Exception) -> str:
    """Returns a phrase for why an image cannot be used."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels (a decompression bomb?)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    words = printable(str(error).partition("\n")[0])
    if isinstance(error, (OSError, ValueError)) and words:
        return words
    return f"does not decode: {type(error).__name__}: {words}"


def _require_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if short < MIN_SIDE:
        raise ValueError(f"{width} x {height} pixels, but each side must have at least {MIN_SIDE}")
    if long > MAX_RATIO * short:
        words = f"the long side is more than {MAX_RATIO} times the short side"
        raise ValueError(f"{width} x {height} pixels: {words}")


def _changed(path: Path) -> ImagesError:
    return ImagesError(
        f"{printable(str(path))} has changed since the sweep was submitted",
        "submit again with another --name, to train on the images as they are now",
    )
