"""A tree of class folders on the login node: the images in it, and all that is wrong with it."""

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

from PIL import _imaging

from skinjob.console import progress, shown
from skinjob.data.images import (
    SPLITS,
    Fault,
    ImageFile,
    ImageSet,
    decode,
    is_flat,
    quoted,
    read_content,
    reason_of,
)
from skinjob.errors import ImagesError
from skinjob.files import pointer_kind
from skinjob.words import list_first, pluralize

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe"),
)
"""The file types that torchvision's ImageFolder takes, and two more names of JPEG."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")

AT_ONCE = 1000  # images that wait for a thread: a pool holds on to all that it is given
SHOWN = 3  # faults named in an error; the lines before it name all
OTHER_FORM = "another Unicode form"
ONE_FORM = (
    "import os, unicodedata as u; [os.rename(s + n, s + u.normalize('NFC', n))"
    " for s in ('train/', 'test/') for n in os.listdir(s)]"
)
"""A program that gives all classes names of one Unicode form, in the image folder."""
MOST_KINDS = 5  # of what is left out, named one by one


def scan(root: Path, *, skips_bad: bool = False) -> ImageSet:
    """Returns the images below *root*, each opened and decoded; shows a bar on a terminal.

    With *skips_bad* it leaves out the images that are faulty; folders must be right all the same.

    Raises: ImagesError that lists all faults at once: of the tree, when it is not one of class
    folders, when the classes of train and test differ, or when a class has no image; and of every
    image that cannot be trained on.
    """
    classes, folders = _classes(root)
    entries: list[tuple[str, int, Path]] = []
    others: list[Path] = []
    for split in SPLITS:
        for label, name in enumerate(classes):
            paths, closed = _listing(root / split / name)
            entries += [(split, label, path) for path in paths if _is_image(path)]
            others += [path for path in paths if not _is_image(path)]
            folders += [Fault(_below(root, path), reason) for path, reason in closed]
    found, bad, flat = [], [], []
    for (split, label, path), result in zip(entries, _examined(entries), strict=True):
        if isinstance(result, str):
            bad.append(Fault(_below(root, path), result))
        else:
            found.append(ImageFile(_below(root, path), split, label, result.bytes, result.sha256))
            flat += [found[-1].path] if result.is_flat else []
    left_out = (*_kinds(others), *_beside(root))
    images = ImageSet(root, classes, tuple(found), left_out, tuple(bad), tuple(flat))
    folders += _empty(images, {fault.path for fault in folders}, others)
    if folders or (bad and not skips_bad):
        raise _faulty(root, folders, bad, len(entries))
    return images


def _classes(root: Path) -> tuple[tuple[str, ...], list[Fault]]:
    """Returns the names of all class folders, sorted, and what is wrong with them.

    Raises: ImagesError when there is no *root*.
    """
    try:
        there = _subfolders(root)
    except OSError as problem:
        raise ImagesError(
            f"image folder {shown(str(root))}: {reason_of(problem)}", "skinjob submit --data FOLDER"
        ) from None
    for name in sorted(there) if not set(SPLITS) & set(there) else ():
        if all((root / name / split).is_dir() for split in SPLITS):  # an archive's own folder
            raise ImagesError(
                f"image folder {shown(str(root))}: train/ and test/ are in its {shown(name)}/",
                f"skinjob submit --data {quoted(root / name)}",
            )
    names: dict[str, set[str]] = {}
    faults = []
    for split in SPLITS:
        try:
            names[split] = {name for name in _subfolders(root / split) if not _is_hidden(name)}
        except OSError as problem:
            beside = ", ".join(f"{shown(n)}/" for n in sorted(there)[:MOST_KINDS])
            hint = f", but {beside}" if split not in there and beside else ""
            faults.append(Fault(split, reason_of(problem) + hint))
    for split, found in names.items():
        if len(found) < 2:
            faults.append(Fault(split, f"{len(found)} found of 2 or more class folders"))
        for other in names:
            for name in found - names[other]:
                words = f"no such class in {other}{_spelling(name, names[other])}"
                faults.append(Fault(f"{split}/{name}", words))
        faults += [
            Fault(f"{split}/{name}", f"another class looks the same{_spelling(name, found)}")
            for name in found
            if any(one != name and _nfc(one) == _nfc(name) for one in found)
        ]
        odd = [name for name in found if not name.isprintable()]  # classes are named in pictures
        faults += [Fault(f"{split}/{name}", "its name is not printable text") for name in odd]
    return tuple(sorted(set().union(*names.values()))), faults


def _spelling(name: str, others: AbstractSet[str]) -> str:
    """Returns how a class is written where that cannot be seen, and how its like in *others* is."""
    if name.isascii() and name == name.strip():
        return ""
    like = [ascii(one) for one in others if one != name and _nfc(one) == _nfc(name)]
    there = f", and {like[0]} is {OTHER_FORM} of it" if like else ""
    return f" (it is written {name!a}{there})"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _subfolders(folder: Path) -> list[str]:
    """Returns the names of a folder's folders, also of linked ones. Raises: OSError."""

    def fail(problem: OSError) -> None:
        raise OSError("no such folder") if isinstance(problem, FileNotFoundError) else problem

    return next(os.walk(folder, onerror=fail))[1]


def _listing(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Returns the files below a class folder, sorted, and what did not open.

    A folder that is hidden or named as an image is among the files. One that links lead to again is
    entered once, and one that lies around the class folder never: links may run in circles.
    """
    paths: list[Path] = []
    closed: list[tuple[Path, str]] = []

    def note(problem: OSError) -> None:
        if not isinstance(problem, FileNotFoundError):  # one that only the other split has
            closed.append((Path(problem.filename), reason_of(problem)))

    real = _real(folder)
    entered = {real, *real.parents}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note):
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
    return Path(os.path.realpath(path))  # Path.resolve raises where links run in circles


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: Path) -> bool:
    """Says whether a file is an image by its name; a space after the suffix is a slip."""
    return path.suffix.strip().lower() in SUFFIXES and not _is_hidden(path.name)


def _kinds(files: Sequence[Path], where: str = "") -> list[str]:
    """Returns how many files there are of each suffix, in words; those of macOS are not counted."""
    counts = Counter(_kind(path) for path in files if path.name != ".DS_Store")
    words = [f"{number} {kind}{where}" for kind, number in counts.most_common(MOST_KINDS)]
    rest = counts.total() - sum(number for _, number in counts.most_common(MOST_KINDS))
    return [*words, f"{rest} of other kinds{where}"] if rest else words


def _kind(path: Path) -> str:
    if _is_hidden(path.name):
        return "hidden"
    return shown(path.suffix.lower()[:12]) if path.suffix.strip(". ") else "without suffix"


def _beside(root: Path) -> list[str]:
    """Returns what lies outside the class folders and might have been meant for use, in words."""
    words = []
    for split in ("", *SPLITS):
        _, folders, names = next(os.walk(root / split), ("", [], []))
        files = [Path(name) for name in names]
        where = f" in {split}/ itself" if split else " beside train/ and test/"
        num_images = sum(map(_is_image, files))
        words += [f"{pluralize(num_images, 'image')}{where}"] if num_images else []
        words += _kinds([file for file in files if file.suffix.lower() in ARCHIVES], where)
        if split:
            words += _kinds([Path(name) for name in folders if _is_hidden(name)], where)
        else:
            unused = sorted(n for n in folders if n not in SPLITS and not _is_hidden(n))
            words += [f"{shown(name)}/ is not used" for name in unused[:MOST_KINDS]]
            more = len(unused) - MOST_KINDS
            words += [f"{pluralize(more, 'more folder')} not used"] if more > 0 else []
    return words


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


class Examined(NamedTuple):
    """The facts about an image that can be trained on."""

    bytes: int
    sha256: str
    is_flat: bool


def _examined(entries: Sequence[tuple[str, int, Path]]) -> Iterator[Examined | str]:
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


def _examine(path: Path) -> Examined | str:
    """Returns an image's size and digest, or what is wrong with it."""
    try:
        content = read_content(path)
        if not content:
            return "empty file"
        if kind := pointer_kind(content):
            return f"{kind}, not the image: git lfs pull (or git annex get) brings it"
        image = decode(content)
    except FileNotFoundError:
        return "broken symbolic link" if path.is_symlink() else "removed while it was looked at"
    except Exception as problem:  # Pillow's decoders raise all kinds; each means that it is faulty
        return reason_of(problem)
    return Examined(len(content), hashlib.sha256(content).hexdigest(), is_flat(image))


def _silence_decoders() -> None:
    """Makes Pillow and libtiff print nothing: what they say of a faulty file Pillow raises too."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):  # a Pillow that was built in another way
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _empty(images: ImageSet, faulty: set[str], others: Sequence[Path]) -> list[Fault]:
    """Returns a fault for each class folder without an image, but for those that are *faulty*.

    *others* are the files that are no images by their names.
    """
    found = {(file.split, file.label) for file in images.files}
    bad = {tuple(fault.path.split("/")[:2]) for fault in images.skipped}
    faults = []
    for split in SPLITS:
        for label, name in enumerate(images.classes):
            folder = images.root / split / name
            if (split, label) in found or f"{split}/{name}" in faulty or not folder.is_dir():
                continue
            kinds = _kinds([path for path in others if path.is_relative_to(folder)])
            instead = f", but {', '.join(kinds)}" if kinds else f" ({', '.join(SUFFIXES)})"
            instead = " that can be trained on" if (split, name) in bad else instead
            faults.append(Fault(f"{split}/{name}", f"no image in it{instead}"))
    return faults


def _faulty(
    root: Path, folders: Sequence[Fault], images: Sequence[Fault], num_images: int
) -> ImagesError:
    faults = sorted([*folders, *images], key=lambda fault: fault.path)
    paths = [shown(str(root / fault.path)) for fault in faults]
    width = max(map(len, paths))
    details = [f"{path:<{width}}  {f.fault}" for path, f in zip(paths, faults, strict=True)]
    named = [f"{path} ({f.fault})" for path, f in zip(paths, faults, strict=True)]
    counts = [
        *([pluralize(len(folders), "faulty folder")] if folders else []),
        *([f"{len(images)} of {num_images} images faulty"] if images else []),
    ]
    if any(OTHER_FORM in fault.fault for fault in folders):
        fix = f'cd {quoted(root)} && python3 -c "{ONE_FORM}"'
    elif folders:
        fix = f"ls {quoted(root)}/*   # wanted: train/<class>/*.jpg and test/<class>/*.jpg"
    else:
        fix = "skinjob submit --skip-bad-images   # goes on without them; or copy them again"
    return ImagesError(f"{', '.join(counts)}: {list_first(named, SHOWN)}", fix, details)
