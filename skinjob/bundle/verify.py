"""Whether files are as they were written, by the lists of digests that travel with them."""

from __future__ import annotations

import csv
import hashlib
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from skinjob.bundle.write import ABOUT, bundle_files
from skinjob.console import printable
from skinjob.data.images import read_index
from skinjob.errors import BundleError, SkinjobError
from skinjob.files import read_sums, sha256_file
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.pack import MISSING, compare, compare_pack, is_pack
from skinjob.sweeps.records import Status
from skinjob.weights.file import SUMS_NAME
from skinjob.words import pluralize


def find_faults(path: Path, data: Path | None = None) -> tuple[str, list[str]]:
    """Returns what was compared, such as "2 files", and a line for each fault.

    *path* is a folder with SHA256SUMS (weights, a bundle, its parts), a pack, a sweep or a run. The
    images of a sweep are looked for where it was submitted, or in *data*.

    Raises: BundleError if *path* is none of these; RunError for a sweep that cannot be read.
    """
    if (path / SUMS_NAME).is_file():
        return _compare_listed(path)
    if (path / "sweep.json").is_file():
        sweep = Sweep(path)
        num_images, faults = _compare_images(sweep, data)
        runs = sweep.runs()
        for run in runs:
            faults += _faults_of(run)
        return f"{pluralize(num_images, 'image')} and {pluralize(len(runs), 'run')}", faults
    if (path / "config.json").is_file():
        return "1 run", list(_faults_of(Run(path)))
    if is_pack(path):
        num_files, faults = compare_pack(path)
        return pluralize(num_files, "file"), faults
    raise BundleError(
        f"{path}: no {SUMS_NAME}, sweep.json or config.json in it: nothing to verify it by",
        f"ls {shlex.quote(str(path))}",
    )


def _compare_listed(folder: Path) -> tuple[str, list[str]]:
    """Compares a folder with its SHA256SUMS; a bundle must have no other files."""
    text = (folder / SUMS_NAME).read_text(encoding="utf-8", errors="surrogateescape")
    listed = {folder / name: digest for _, name, digest in read_sums(text) if name}
    faults = compare(listed, sha256_file) if listed else [f"{folder / SUMS_NAME}: lists no file"]
    if (folder / ABOUT).is_file():
        others = [folder / name for name in bundle_files(folder) if folder / name not in listed]
        faults += [f"{printable(str(file))}: is not in {SUMS_NAME}" for file in others]
    return pluralize(len(listed), "file"), faults


def _compare_images(sweep: Sweep, data: Path | None) -> tuple[int, list[str]]:
    info = sweep.info().images
    root = data or Path(info.root)
    images = read_index(sweep.images_file, root, tuple(info.classes))
    faults = []
    if images.fingerprint() != info.fingerprint:
        faults.append(f"{sweep.images_file}: differs from the fingerprint in sweep.json")
    if not root.exists():
        return 0, [*faults, f"{printable(str(root))}: no such path (--data names another)"]
    listed = {root / image.path: image.sha256 for image in images.files}
    store = images.store

    def digest(file: Path) -> str:
        return hashlib.sha256(store.read(file.relative_to(root).as_posix())).hexdigest()

    faults += compare(listed, digest)
    return len(listed), faults


def _faults_of(run: Run) -> Iterator[str]:
    """Yields a line for each file of a run that is missing, cut off or against its state."""
    try:
        config, state = run.config(), run.state()
    except SkinjobError as error:
        yield error.message
        return
    with suppress(FileNotFoundError):
        for file in run.checkpoint_files:
            content = file.read_bytes()
            if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                yield f"{file}: its digest does not match its content"
    if (num_epochs := _num_rows(run.metrics_file)) < state.epoch:
        yield f"{run.metrics_file}: {num_epochs} whole epochs, {state.epoch} in state.json"
    if state.status != Status.DONE:
        return
    tables = {
        run.predictions_file: True,
        run.val_predictions_file: config.val_fraction,
        run.tests_file: config.updates,
    }
    for file, is_expected in tables.items():
        if is_expected and not _num_rows(file):
            yield f"{file}: {MISSING} or empty"
    trained = run.trained_file("model" if config.train == "all" else "head")
    if fault := _tensors_fault(trained):
        yield f"{trained}: {fault}"


def _num_rows(file: Path) -> int:
    """Returns the number of whole rows below the header of a CSV file; 0 if it cannot be read."""
    try:
        with file.open(newline="", encoding="utf-8") as content:
            rows = list(csv.reader(content))
    except (OSError, ValueError, csv.Error):
        return 0
    return sum(len(row) == len(rows[0]) for row in rows[1:])


def _tensors_fault(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):  # compares the size with the header
            return ""
    except FileNotFoundError:
        return MISSING
    except (SafetensorError, OSError) as error:
        return str(error)
