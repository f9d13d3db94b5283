"""A tree of images in class folders: what is in it, what is wrong with it, and its fingerprint.

    <root>/train/<class>/*.jpg        <root>/test/<class>/*.jpg

Pillow alone: it runs on a login node without torch.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import hashlib
import io
import logging
import os
import shlex
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from skinjob.console import progress
from skinjob.errors import ImagesError
from skinjob.files import replacing

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The file types that torchvision's ImageFolder takes."""

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF")
"""What a file may hold, whatever its suffix. Pillow knows more, and for one calls Ghostscript."""

LEAST_SIDE = 16  # pixels; less is a placeholder, such as the 1 x 1 of a web page
MOST_RATIO = 16  # of the sides; with the shorter one at 224 the longer one would fill the memory
MOST_PIXELS = 2**28 // 3  # 256 MiB in RGB; from here on Pillow warns of a decompression bomb
MOST_BYTES = 2**30  # a file of more is not read

COLUMNS = ("path", "split", "label", "bytes", "sha256")
AT_ONCE = 1000  # images that wait for a thread: a pool holds on to all that it is given
SHOWN = 3  # faults named in an error; the lines before it name all

KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}


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
        name = shown(str(root / self.path))
        try:
            content = _content(root / self.path)
        except OSError as problem:
            raise ImagesError(
                f"{name}: {_reason(problem)}", f"ls -l {_quoted(root / self.path)}"
            ) from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ImagesError(
                f"{name} has changed since the sweep was submitted",
                "submit again, under another --name, to train on the images as they are now",
            )
        return decode(content)


@dataclass(frozen=True, slots=True)
class Fault:
    """A file or folder of the tree that cannot be used, and why."""

    path: str
    """Below the root, with forward slashes."""
    fault: str


@dataclass(frozen=True)
class ImageSet:
    """The images of a tree, in the order of their paths."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    num_ignored: int = field(default=0, compare=False)
    """Files in class folders that are not images by their name."""
    skipped: tuple[Fault, ...] = field(default=(), compare=False)
    """Images that were left out for their faults."""

    def split(self, name: str) -> tuple[ImageFile, ...]:
        return tuple(file for file in self.files if file.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class."""
        found = Counter((file.split, file.label) for file in self.files)
        return {
            split: {name: found[split, label] for label, name in enumerate(self.classes)}
            for split in SPLITS
        }

    def in_train_too(self) -> tuple[ImageFile, ...]:
        """Returns the test images that are, byte for byte, training images too."""
        train = {file.sha256 for file in self.split("train")}
        return tuple(file for file in self.split("test") if file.sha256 in train)

    def in_two_classes(self) -> tuple[ImageFile, ...]:
        """Returns the images that lie, byte for byte, in another class too."""
        labels = {file.sha256: file.label for file in self.files}
        torn = {file.sha256 for file in self.files if file.label != labels[file.sha256]}
        return tuple(file for file in self.files if file.sha256 in torn)

    def fingerprint(self, split: str | None = None) -> str:
        """Returns a SHA-256 over every path below the root and its content, of one split or all."""
        digest = hashlib.sha256()
        for file in self.files if split is None else self.split(split):
            digest.update(f"{file.path}\0{file.sha256}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def scan(root: Path, *, skips_bad: bool = False) -> ImageSet:
    """Returns the images below *root*, each opened and decoded; shows a bar on a terminal.

    With *skips_bad* it leaves out the images that are faulty; folders must be right all the same.

    Raises: ImagesError that lists all faults at once: of the tree, when it is not one of class
    folders, when the classes of train and test differ, or when a class has no image; and of every
    image that cannot be trained on.
    """
    classes, folders = _classes(root)
    listed: list[tuple[str, int, Path]] = []
    for split in SPLITS:
        for label, name in enumerate(classes):
            paths, closed = _listing(root / split / name)
            listed += [(split, label, path) for path in paths]
            folders += [Fault(_below(root, path), reason) for path, reason in closed]
    entries = [entry for entry in listed if entry[2].suffix.lower() in SUFFIXES]
    found, bad = [], []
    for (split, label, path), result in zip(entries, _examined(entries), strict=True):
        if isinstance(result, str):
            bad.append(Fault(_below(root, path), result))
        else:
            found.append(ImageFile(_below(root, path), split, label, *result))
    num_ignored = len(listed) - len(entries)
    images = ImageSet(root, classes, tuple(found), num_ignored, skipped=tuple(bad))
    folders += _empty(images, {fault.path for fault in folders})
    if folders or (bad and not skips_bad):
        raise _faulty(root, folders, bad, len(entries))
    return images


def decode(content: bytes) -> Image.Image:
    """Returns an image file's first frame in RGB, upright, without its transparency.

    Raises: ValueError for a size that is not trained on, before a pixel is decoded, and whatever
    Pillow raises for bytes that are not a whole image.
    """
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    _require_size(*image.size)
    image.load()
    with contextlib.suppress(Exception):  # EXIF that does not read turns nothing: as in a viewer
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit values to 255 on the way to RGB, which turns most of an image white.
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode == "P":
        image = image.convert(
            "RGBA"
        )  # palettes may have a transparent entry, which RGB warns about
    return image.convert("RGB")


def shown(text: str) -> str:
    """Returns a text as it is shown in a line: what does not print is escaped.

    Names of files may hold line breaks, colours of a terminal, and bytes that are no text.

    >>> print(shown("a b\\n.jpg"))
    a b\\n.jpg
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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


def _classes(root: Path) -> tuple[tuple[str, ...], list[Fault]]:
    """Returns the names of all class folders, sorted, and what is wrong with them.

    Raises: ImagesError when there is no *root*.
    """
    try:
        _subfolders(root)
    except OSError as problem:
        raise ImagesError(
            f"image folder {shown(str(root))}: {_reason(problem)}", "skinjob submit --data FOLDER"
        ) from None
    names: dict[str, set[str]] = {}
    faults = []
    for split in SPLITS:
        try:
            names[split] = {name for name in _subfolders(root / split) if not _is_hidden(name)}
        except OSError as problem:
            faults.append(Fault(split, _reason(problem)))
    for split, found in names.items():
        if len(found) < 2:
            faults.append(Fault(split, f"{len(found)} found of 2 or more class folders"))
        for other in names:
            lacking = found - names[other]
            faults += [Fault(f"{split}/{name}", f"no such class in {other}") for name in lacking]
        odd = [name for name in found if not name.isprintable()]  # classes are named in pictures
        faults += [Fault(f"{split}/{name}", "its name is not printable text") for name in odd]
    return tuple(sorted(set().union(*names.values()))), faults


def _subfolders(folder: Path) -> list[str]:
    """Returns the names of a folder's folders, also of linked ones. Raises: OSError."""

    def fail(problem: OSError) -> None:
        raise OSError("no such folder") if isinstance(problem, FileNotFoundError) else problem

    return next(os.walk(folder, onerror=fail))[1]


def _listing(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Returns the files below a class folder that are not hidden, sorted, and what did not open.

    A folder that is named as an image is among the files. One that links lead to again is entered
    once, and one that lies around the class folder never: links may run in circles.
    """
    paths: list[Path] = []
    closed: list[tuple[Path, str]] = []

    def note(problem: OSError) -> None:
        if not isinstance(problem, FileNotFoundError):  # one that only the other split has
            closed.append((Path(problem.filename), _reason(problem)))

    real = _real(folder)
    entered = {real, *real.parents}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note):
        into = []
        for name in sorted(name for name in folders if not _is_hidden(name)):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                paths.append(path)
            elif (real := _real(path)) not in entered:
                entered.add(real)
                into.append(name)
        folders[:] = into
        paths += [Path(parent, name) for name in files if not _is_hidden(name)]
    return sorted(paths), closed


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links run in circles


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _examined(entries: Sequence[tuple[str, int, Path]]) -> Iterator[tuple[int, str] | str]:
    """Yields what `_examine` says of each entry's path, in order; shows a bar on a terminal."""
    _silence_decoders()
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        progress("checking images", len(entries)) as draw,
    ):
        warnings.simplefilter("ignore")  # what is wrong is in the list of faults
        for first in range(0, len(entries), AT_ONCE):
            paths = [path for _, _, path in entries[first : first + AT_ONCE]]
            for done, result in enumerate(pool.map(_examine, paths), first + 1):
                yield result
                draw(done)


def _examine(path: Path) -> tuple[int, str] | str:
    """Returns an image's size and digest, or what is wrong with it."""
    try:
        content = _content(path)
        if not content:
            return "empty file"
        decode(content)
    except FileNotFoundError:
        return "broken symbolic link" if path.is_symlink() else "removed while it was looked at"
    except Exception as problem:  # Pillow's decoders raise all kinds; each means that it is faulty
        return _reason(problem)
    return len(content), hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    """Returns a file's bytes. Raises: OSError, also for what is no file or too large for one."""
    found = path.stat()  # first: whoever opens a pipe waits for somebody to write to it
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"a {KINDS.get(stat.S_IFMT(found.st_mode), 'device')}, not a file")
    if found.st_size > MOST_BYTES:
        raise OSError(f"{found.st_size:,} bytes, and at most {MOST_BYTES:,} are read")
    return path.read_bytes()


def _require_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if width * height > MOST_PIXELS:
        raise Image.DecompressionBombError
    if short < LEAST_SIDE:
        raise ValueError(f"{width} x {height} pixels, and at least {LEAST_SIDE} a side are wanted")
    if long > MOST_RATIO * short:
        raise ValueError(
            f"{width} x {height} pixels: one side is more than {MOST_RATIO} times the other"
        )


def _reason(problem: Exception) -> str:
    """Returns what went wrong as the end of a line."""
    if isinstance(problem, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(problem, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS:,} pixels (a decompression bomb?)"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    said = shown(str(problem).partition("\n")[0])
    if isinstance(problem, (OSError, ValueError)) and said:
        return said
    return f"does not decode: {type(problem).__name__}: {said}"


def _silence_decoders() -> None:
    """Makes Pillow and libtiff print nothing: what they say of a faulty file Pillow raises too."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # a Pillow that was built in another way
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _empty(images: ImageSet, faulty: set[str]) -> list[Fault]:
    """Returns a fault for each class folder without an image, but for those that are *faulty*."""
    found = {(file.split, file.label) for file in images.files}
    bad = {tuple(fault.path.split("/")[:2]) for fault in images.skipped}
    return [
        Fault(
            f"{split}/{name}",
            "no image in it that can be trained on"
            if (split, name) in bad
            else f"no image in it ({', '.join(SUFFIXES)})",
        )
        for split in SPLITS
        for label, name in enumerate(images.classes)
        if (split, label) not in found
        and f"{split}/{name}" not in faulty
        and (images.root / split / name).is_dir()
    ]


def _faulty(
    root: Path, folders: Sequence[Fault], images: Sequence[Fault], num_images: int
) -> ImagesError:
    faults = sorted([*folders, *images], key=lambda fault: fault.path)
    paths = [shown(str(root / fault.path)) for fault in faults]
    width = max(map(len, paths))
    details = [f"{path:<{width}}  {f.fault}" for path, f in zip(paths, faults, strict=True)]
    named = [f"{path} ({f.fault})" for path, f in zip(paths, faults[:SHOWN], strict=False)]
    counts = [
        *([f"{len(folders)} faulty folder{'s' * (len(folders) > 1)}"] if folders else []),
        *([f"{len(images)} of {num_images} images faulty"] if images else []),
    ]
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return ImagesError(
        f"{', '.join(counts)}: {', '.join(named)}{more}",
        f"ls {_quoted(root)}/*   # wanted: train/<class>/*.jpg and test/<class>/*.jpg"
        if folders
        else "skinjob submit --skip-bad-images   # goes on without them; or copy them again",
        details,
    )


def _quoted(path: Path) -> str:
    return shown(shlex.quote(str(path)))
