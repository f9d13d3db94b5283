"""Writes the images of a data set to a zip that `skinjob submit --data` reads in place."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from skinjob.console import printable, progress
from skinjob.data.images import ImageSet, explain
from skinjob.data.store import open_store, quoted
from skinjob.errors import ImagesError
from skinjob.files import replacing

FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The earliest time in a zip. Equal images give equal bytes, whenever they were written."""


def pack_images(images: ImageSet, file: Path) -> None:
    """Writes a zip with the images of a scan, in their order, and reads each back.

    They are stored, as JPEG and PNG are compressed already. The zip appears in a single step.

    Raises: ImagesError if *file* exists, an image has changed since the scan, or a name is not
    UTF-8; OSError.
    """
    if file.exists():
        raise ImagesError(f"{file} exists", f"rm {quoted(file)}   # or choose another --out")
    with replacing(file) as partial:
        with (
            zipfile.ZipFile(partial, "w") as archive,
            progress("packing images", len(images.files)) as show,
        ):
            for number, image in enumerate(images.files, 1):
                entry = zipfile.ZipInfo(image.path, FIRST_DAY)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix: a file
                try:
                    archive.writestr(entry, images.store.read(image.path))
                except UnicodeEncodeError:
                    name = printable(str(images.root / image.path))
                    raise ImagesError(f"{name}: its name is not UTF-8", _rename(images)) from None
                show(number)
        _require_same(images, partial)


def _require_same(images: ImageSet, file: Path) -> None:
    packed = open_store(file)
    for image in images.files:
        try:
            sha256 = hashlib.sha256(packed.read(image.path)).hexdigest()
        except OSError as error:
            sha256 = explain(error)
        if sha256 != image.sha256:
            name = printable(str(images.root / image.path))
            raise ImagesError(
                f"{name} has changed while it was packed", images.store.look(image.path)
            )


def _rename(images: ImageSet) -> str:
    return f"convmv -f latin1 -t utf8 -r --notest {quoted(images.root)}"
