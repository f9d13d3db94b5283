"""Scans the images in a folder or an archive, and reports everything that is wrong with it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import _imaging

from skinjob.console import printable, progress
from skinjob.data.audit import SKETCH, sketch
from skinjob.data.images import (
    BadFile,
    ImageFile,
    ImageSet,
    decode,
    explain,
)
from skinjob.data.store import FOLDERS, FolderStore, Store, open_store, quoted
from skinjob.errors import ImagesError
from skinjob.files import pointer_kind
from skinjob.words import list_first, pluralize

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe"),
)
"""The suffixes of torchvision's ImageFolder, and two more of JPEG."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")

AT_ONCE = 1000  # images in the threads, whose results are in memory
NUM_NAMED = 3  # bad files in the error; the lines before it name all
OTHER_FORM = "another Unicode form"
RENAME_TO_ONE_FORM = (
    "import os, unicodedata as u; [os.rename(s + n, s + u.normalize('NFC', n))"
    " for s in ('train/', 'test/') for n in os.listdir(s)]"
)
"""A program that renames all classes of an image folder to the same Unicode form."""
MAX_KINDS = 5  # of unused files that are named


def scan(root: Path, *, skips_bad: bool = False) -> ImageSet:
    """Returns the images in *root*, after decoding each; shows a progress bar on a terminal.

    *root* is a folder, or a zip or a plain tar, which gives the same result.

    *skips_bad* leaves out images that cannot be used. It does not allow wrong folders.

    Raises: ImagesError with all problems: classes that are missing, empty or not the same in each
    folder, and images that cannot be used.
    """
    store = open_store(root)
    classes, bad_folders = _classes(store)
    entries: list[Entry] = []
    others: list[Path] = []
    for split in FOLDERS:
        for label, name in enumerate(classes):
            paths, closed = _list_files(store, root / split / name)
            entries += [Entry(store, split, label, path) for path in paths if _is_image(path)]
            others += [path for path in paths if not _is_image(path)]
            bad_folders += [BadFile(_below(root, path), reason) for path, reason in closed]
    files: list[ImageFile] = []
    bad_images = []
    sketches = np.zeros(len(entries), SKETCH)
    for result, sketched in _examine_all(entries):
        if isinstance(result, BadFile):
            bad_images.append(result)
        else:
            sketches[len(files)] = sketched
            files.append(result)
    sketches = sketches[: len(files)]
    left_out = (*_count_kinds(others), *_beside(store))
    flat = tuple(files[place].path for place in np.flatnonzero(sketches["is_flat"]))
    images = ImageSet(root, classes, tuple(files), left_out, tuple(bad_images), flat, sketches)
    bad_folders += _empty_classes(images, store, {folder.path for folder in bad_folders}, others)
    if bad_folders or (bad_images and not skips_bad):
        raise _error(store, bad_folders, bad_images, len(entries))
    return images


def _classes(store: Store) -> tuple[tuple[str, ...], list[BadFile]]:
    """Returns the names of all class folders, sorted, and what is wrong with them.

    Raises: ImagesError if the root is not readable.
    """
    root = store.root
    try:
        top_folders = sorted(_subfolders(store, root))
    except OSError as error:
        words = f"image folder {printable(str(root))}: {explain(error)}"
        raise ImagesError(words, "skinjob submit --data FOLDER") from None
    for name in top_folders if not set(FOLDERS) & set(top_folders) else ():
        if all((root / name / split).is_dir() for split in FOLDERS):  # the folder of an archive
            raise ImagesError(
                f"image folder {printable(str(root))}: train/ and test/ are in its "
                f"{printable(name)}/",
                f"skinjob submit --data {quoted(root / name)}",
            )
    names: dict[str, set[str]] = {}
    bad = []
    for split in FOLDERS:
        try:
            folders = _subfolders(store, root / split)
            names[split] = {name for name in folders if not _is_hidden(name)}
        except OSError as error:
            beside = ", ".join(f"{printable(name)}/" for name in top_folders[:MAX_KINDS])
            hint = f", but {beside}" if split not in top_folders and beside else ""
            bad.append(BadFile(split, explain(error) + hint))
    for split, classes in names.items():
        if len(classes) < 2:
            bad.append(BadFile(split, f"{len(classes)} class folders, 2 or more expected"))
        for other in names:
            for name in classes - names[other]:
                words = f"no such class in {other}{_spelling(name, names[other])}"
                bad.append(BadFile(f"{split}/{name}", words))
        for name in classes:
            if _lookalikes(name, classes):
                words = f"another class looks the same{_spelling(name, classes)}"
                bad.append(BadFile(f"{split}/{name}", words))
            if not name.isprintable():  # plots and tables show it
                bad.append(BadFile(f"{split}/{name}", "its name is not printable text"))
    return tuple(sorted(set().union(*names.values()))), bad


def _spelling(name: str, others: AbstractSet[str]) -> str:
    """Returns the exact name of a class, if it is not plain ASCII, and its lookalike."""
    if name.isascii() and name == name.strip():
        return ""
    like = _lookalikes(name, others)
    other = f", and {like[0]!a} is {OTHER_FORM} of it" if like else ""
    return f" (it is written {name!a}{other})"


def _lookalikes(name: str, others: AbstractSet[str]) -> list[str]:
    """Returns the names that differ from *name* only in their Unicode form."""
    form = unicodedata.normalize("NFC", name)
    return [n for n in others if n != name and unicodedata.normalize("NFC", n) == form]


def _subfolders(store: Store, folder: Path) -> list[str]:
    """Returns the names of the folders in a folder; links to folders count. Raises: OSError."""

    def fail(error: OSError) -> None:
        raise OSError("no such folder") if isinstance(error, FileNotFoundError) else error

    return next(store.walk(folder, fail))[1]


def _list_files(store: Store, folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Returns the files in a class folder, sorted, and the folders that cannot be opened.

    A folder that is hidden or named like an image counts as a file. Links may form circles, so each
    folder is entered once, and a parent of the class folder never.
    """
    paths: list[Path] = []
    closed: list[tuple[Path, str]] = []

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # only the other folder has this class
            closed.append((Path(error.filename), explain(error)))

    real = _real(folder)
    entered = {real, *real.parents}
    for parent, folders, files in store.walk(folder, note):
        into = []
        for name in sorted(folders):
            path = Path(parent, name)
            if _is_hidden(name) or _is_image(path):
                paths.append(path)
            elif (real := _real(path)) not in entered:
                entered.add(real)
                into.append(name)
        folders[:] = into
        paths += [Path(parent, name) for name in files]
    return sorted(paths), closed


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises if links form circles


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: Path) -> bool:
    """Returns whether a file is an image by its name; a space after the suffix is ignored."""
    return path.suffix.strip().lower() in SUFFIXES and not _is_hidden(path.name)


def _count_kinds(files: Sequence[Path], where: str = "") -> list[str]:
    """Returns a phrase for each suffix, with the number of files; .DS_Store does not count."""
    counts = Counter(_kind(path) for path in files if path.name != ".DS_Store")
    words = [f"{number} {kind}{where}" for kind, number in counts.most_common(MAX_KINDS)]
    num_other = counts.total() - sum(number for _, number in counts.most_common(MAX_KINDS))
    return [*words, f"{num_other} of other kinds{where}"] if num_other else words


def _kind(path: Path) -> str:
    if _is_hidden(path.name):
        return "hidden"
    return printable(path.suffix.lower()[:12]) if path.suffix.strip(". ") else "without suffix"


def _beside(store: Store) -> list[str]:
    """Returns a phrase for each kind of file outside the class folders that may be an error."""
    words = []
    for split in ("", *FOLDERS):
        _, folders, names = next(store.walk(store.root / split, _ignore), ("", [], []))
        files = [Path(name) for name in names]
        where = f" in {split}/ itself" if split else " beside train/ and test/"
        num_images = sum(map(_is_image, files))
        words += [f"{pluralize(num_images, 'image')}{where}"] if num_images else []
        words += _count_kinds([file for file in files if file.suffix.lower() in ARCHIVES], where)
        if split:
            words += _count_kinds([Path(name) for name in folders if _is_hidden(name)], where)
        else:
            unused = sorted(n for n in folders if n not in FOLDERS and not _is_hidden(n))
            words += [f"{printable(name)}/ is not used" for name in unused[:MAX_KINDS]]
            more = len(unused) - MAX_KINDS
            words += [f"{pluralize(more, 'more folder')} not used"] if more > 0 else []
    return words


def _ignore(error: OSError) -> None:
    """Takes a folder that cannot be listed for an empty one."""


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


Result = tuple[ImageFile | BadFile, NDArray[np.void] | None]
"""An image and its sketch, or what is wrong with a file."""


class Entry(NamedTuple):
    """A file that is an image by its name, with its split and class."""

    store: Store
    split: str
    label: int
    path: Path


def _examine_all(
    entries: Sequence[Entry],
) -> Iterator[Result]:
    """Yields the result of `_examine` for each entry, in order; shows a progress bar."""
    _silence_decoders()
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        progress("checking images", len(entries)) as draw,
    ):
        warnings.simplefilter("ignore")  # the list of bad files has the damaged images
        for first in range(0, len(entries), AT_ONCE):
            part = entries[first : first + AT_ONCE]
            for num_done, result in enumerate(pool.map(_examine, part), first + 1):
                yield result
                draw(num_done)


def _examine(entry: Entry) -> Result:
    """Returns the image and its sketch, or what is wrong with it."""
    below = _below(entry.store.root, entry.path)
    try:
        content = entry.store.read(below)
        if kind := pointer_kind(content):
            words = f"{kind}, not the image: git lfs pull (or git annex get) brings it"
            return BadFile(below, words), None
        if not content:
            return BadFile(below, "empty file"), None
        image = decode(content)
    except FileNotFoundError:
        is_link = entry.path.is_symlink()
        words = "broken symbolic link" if is_link else "removed during the scan"
        return BadFile(below, words), None
    except Exception as error:  # Pillow's decoders raise all kinds for a damaged image
        return BadFile(below, explain(error)), None
    sha256 = hashlib.sha256(content).hexdigest()
    return ImageFile(below, entry.split, entry.label, len(content), sha256), sketch(image)


def _silence_decoders() -> None:
    """Stops messages of Pillow and libtiff, as Pillow also raises an exception."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # in another build of Pillow
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _empty_classes(
    images: ImageSet, store: Store, bad_folders: set[str], others: Sequence[Path]
) -> list[BadFile]:
    """Returns the class folders without an image, except *bad_folders*.

    *others* are the files without an image's name.
    """
    with_image = {(file.split, file.label) for file in images.files}
    with_bad_image = {tuple(file.path.split("/")[:2]) for file in images.skipped}
    empty = []
    for split in FOLDERS:
        for label, name in enumerate(images.classes):
            folder, below = images.root / split / name, f"{split}/{name}"
            is_known = (split, label) in with_image or below in bad_folders
            if is_known or not next(store.walk(folder, _ignore), None):
                continue
            kinds = _count_kinds([path for path in others if path.is_relative_to(folder)])
            hint = f", but {', '.join(kinds)}" if kinds else f" ({', '.join(SUFFIXES)})"
            hint = " that can be trained on" if (split, name) in with_bad_image else hint
            empty.append(BadFile(below, f"no image in it{hint}"))
    return empty


def _error(
    store: Store, folders: Sequence[BadFile], images: Sequence[BadFile], num_images: int
) -> ImagesError:
    root = store.root
    bad = sorted([*folders, *images], key=lambda file: file.path)
    paths = [printable(str(root / file.path)) for file in bad]
    width = max(map(len, paths))
    details = [f"{path:<{width}}  {file.fault}" for path, file in zip(paths, bad, strict=True)]
    named = [f"{path} ({file.fault})" for path, file in zip(paths, bad, strict=True)]
    counts = [pluralize(len(folders), "faulty folder")] if folders else []
    counts += [f"{len(images)} of {num_images} images faulty"] if images else []
    if isinstance(store, FolderStore) and any(OTHER_FORM in folder.fault for folder in folders):
        fix = f'cd {quoted(root)} && python3 -c "{RENAME_TO_ONE_FORM}"'
    elif folders:
        fix = f"{store.look()}   # expected: train/<class>/*.jpg and test/<class>/*.jpg"
    else:
        fix = "skinjob submit --skip-bad-images   # leaves them out; or copy them again"
    return ImagesError(f"{', '.join(counts)}: {list_first(named, NUM_NAMED)}", fix, details)
