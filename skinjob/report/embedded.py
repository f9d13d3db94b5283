"""report.json, which is also inside the page: the results, and the files of the sweeps.

`skinjob report --from` makes the same report from it, on a machine without the sweeps.
"""

from __future__ import annotations

import base64
import bz2
import csv
import io
import json
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from skinjob.errors import RunError
from skinjob.report.answer import short_path
from skinjob.report.tables import SweepTable
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import UPGRADE, RunState, Status, SweepInfo

FORMAT = 1
MOST_BYTES = 16 << 20
"""Of a sweep's files in a page: 1,600 runs of 20 epochs, or 400 with predictions for 660 images.
Packed and in base64 they take about a fifth of that."""
MOST_UNPACKED = 4 * MOST_BYTES  # a page may come from a stranger

START, END = '<script type="application/json" id="report">', "</script>"
PICTURE = re.compile(r'<img id="mistake-(\d{1,6})" src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)"')
FILE_NAME = re.compile(r"[a-z][a-z_-]*\.(csv|json)")
KEYS = {
    "sweep.json": {*SweepInfo.__dataclass_fields__, "format"} - {"folder", "cluster", "jobs"},
    "state.json": {*RunState.__dataclass_fields__, "format", "state", "fault", "error"}
    - {"job_id", "holder", "host", "pid", "fix"},
}
"""The keys of these files that a page has; state, fault and error are of format 1. No report needs
the host, the job, and the settings of the cluster, which may hold an account or a password."""
IMAGE = re.compile(r"\.(jpe?g|jfif|jpe|png|tiff?|webp|bmp|p[gp]m|gif)\b", re.IGNORECASE)

STATUSES = (*(status.value for status in Status), "not counted")  # in sentences of findings.py

Files = dict[str, str]
"""Texts by path below the folder of a sweep."""


@dataclass(frozen=True)
class Kept:
    """The facts of a report that depend on the machine: no file of a sweep has them."""

    has_images: bool = True
    """Whether names and pictures of images may be shown."""
    missing: list[str] = field(default_factory=list)
    """A sentence for each run that cannot be read or lacks epochs."""
    notes: list[str] = field(default_factory=list)
    pictures: dict[int, str] = field(default_factory=dict)
    """JPEGs of mistakes by their number on an earlier page; report.json has none."""


def as_json(results: Mapping[str, Any], files: str | None, kept: Kept) -> str:
    """Returns the text of report.json. Every < is escaped, so it can stand inside a page."""
    values = {
        "format": FORMAT,
        **results,
        "kept": {name: value for name, value in asdict(kept).items() if name != "pictures"},
        "files": files,
    }
    return json.dumps(values, indent=1).replace("<", "\\u003c")


def packed_files(tables: Sequence[SweepTable], kept: Kept) -> str | None:
    """Returns the files of all sweeps as base64 of bzip2 of JSON; None if they are too large."""
    files = {table.sweep.name: read_files(table) for table in tables}
    for own in files.values():
        for path, text in own.items():
            if keys := KEYS.get(PurePosixPath(path).name):
                values = json.loads(text)
                own[path] = json.dumps({name: values[name] for name in values if name in keys})
        if own:
            own["sweep.json"] = _with_short_paths(own["sweep.json"])
        if not kept.has_images:
            _leave_out_names(own)
    if not all(files.values()):
        return None
    return base64.b64encode(bz2.compress(json.dumps(files).encode())).decode("ascii")


def read_files(table: SweepTable) -> Files:
    """Returns the small files of a sweep and of its readable runs; empty if they are too large.

    A folder may hold other tables, with names of patients: they stay where they are.
    """
    sweep, files, total = table.sweep, {}, 0
    paths = [sweep.converged_file, sweep.images_file, sweep.sweep_file]
    for run in sweep.runs():
        if run.name not in table.unread:
            paths += _paths(run)
    for path in paths:
        with suppress(OSError):
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                continue
            is_index = path == sweep.images_file
            if total + (0 if is_index else info.st_size) > MOST_BYTES:
                return {}
            text = path.read_bytes().decode("utf-8", "surrogateescape")
            if is_index and not (text := _only_copies(text)):
                continue
            total += len(text.encode("utf-8", "surrogateescape"))
            files[path.relative_to(sweep.folder).as_posix()] = text
    return files if total <= MOST_BYTES else {}


def _paths(run: Run) -> list[Path]:
    """Returns the files of a run that a report reads."""
    return [
        run.config_file,
        run.metrics_file,
        run.val_predictions_file,
        run.predictions_file,
        run.state_file,
        run.tests_file,
    ]


def without_names(lines: Sequence[str]) -> list[str]:
    """Returns sentences; of those that name an image, only the run and its status.

    >>> without_names(["bs0032-lr0.01-seed0: failed: train/nevus/Ada: B.jpg has changed"])
    ['bs0032-lr0.01-seed0: failed']
    """
    return [_up_to_status(line) if IMAGE.search(line) else line for line in lines]


def _up_to_status(line: str) -> str:
    parts = line.split(": ")
    places = (place for place, part in enumerate(parts) if part.startswith(STATUSES))
    return ": ".join(parts[: next(places, 0) + 1])


def _only_copies(text: str) -> str:
    """Returns the rows of images.csv that name copies: the others have nothing for a report.

    '' if it has no such column, or is damaged.
    """
    rows = _rows(text)
    if not rows or "copies" not in rows[0]:
        return ""
    place = rows[0].index("copies")
    return _csv([rows[0], *(row for row in rows[1:] if row[place:] not in ([], [""], ["0"]))])


def _rows(text: str) -> list[list[str]]:
    """Returns the rows of a CSV; none if it is damaged."""
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error:
        return []


def _csv(rows: Iterable[Sequence[str]]) -> str:
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    return written.getvalue()


def _with_short_paths(text: str) -> str:
    """Returns sweep.json with the paths that commands in the report show.

    They are relative to the current folder, which is another one when the report is made again.
    """
    values = json.loads(text)
    recipe = values["recipe"]
    short = {name: short_path(recipe[name]) for name in ("data", "weights") if name in recipe}
    return json.dumps({**values, "recipe": {**recipe, **short}})


def _leave_out_names(files: Files) -> None:
    """Replaces the names of images by numbers, and removes sentences with such a name."""
    numbers: dict[str, str] = {}

    def number(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers) + 1))

    for path, text in files.items():
        name = PurePosixPath(path).name
        if name in ("images.csv", "predictions.csv", "predictions-val.csv"):
            files[path] = _with_first_cells(text, number)
        elif name == "sweep.json":
            values = json.loads(text)
            images = values.get("images", {})
            for skipped in images.get("skipped", ()):
                skipped["path"] = number(skipped["path"])
            files[path] = json.dumps(values)
        elif name == "state.json":
            values = json.loads(text).items()
            files[path] = json.dumps({k: None if IMAGE.search(str(v)) else v for k, v in values})


def _with_first_cells(text: str, change: Callable[[str], str]) -> str:
    """Returns a CSV with the first cell of each row but the header changed; '' if it is damaged."""
    rows = _rows(text)
    return _csv([*rows[:1], *([change(row[0]), *row[1:]] for row in rows[1:] if row)])


def restore(file: Path, folder: Path) -> tuple[list[Sweep], Kept]:
    """Writes the sweeps that a page or a report.json holds to a folder; returns them.

    Raises: RunError if the file is none of the two, is of a newer format, or has no sweeps in it.
    """
    text = _read(file)
    page, is_page, rest = text.partition(START)
    source, pictures = (rest.partition(END)[0], page) if is_page else (text, "")
    show = f"head -c 300 {shlex.quote(str(file))}"
    try:
        values = json.loads(source)
        version = values["format"]
        if version > FORMAT:
            raise RunError(
                f"{file} was made by a newer skinjob (format {version}; this one reads up to "
                f"{FORMAT})",
                UPGRADE,
            )
        kept = msgspec.convert(values["kept"], Kept)
        sweeps = _unpacked(values["files"]) if values["files"] else {}
        written = [_write(folder, name, files) for name, files in sweeps.items()]
    except (ValueError, KeyError, TypeError, OSError, EOFError, msgspec.MsgspecError) as error:
        raise RunError(f"{file} is no page of skinjob report: {error!s:.200}", show) from None
    if not written:
        raise RunError(
            f"{file} does not hold its sweeps, because their files have more than "
            f"{MOST_BYTES >> 20} MB",
            "skinjob report SWEEP   # where the sweep is",
        )
    return written, replace(
        kept, pictures={int(number): jpeg for number, jpeg in PICTURE.findall(pictures)}
    )


def _read(file: Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise RunError(f"{file} is not a file", f"ls -ld {shlex.quote(str(file))}")
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        fix = f"ls -ld {shlex.quote(str(file.parent))}"
        raise RunError(f"{file}: {error.strerror}", fix) from None


def _unpacked(packed: str) -> dict[str, Files]:
    """Returns the files of each sweep. Raises: ValueError, OSError, msgspec.ValidationError."""
    unpacker = bz2.BZ2Decompressor()
    content = unpacker.decompress(base64.b64decode(packed, validate=True), MOST_UNPACKED)
    if not unpacker.eof:
        raise ValueError("its files are not whole, or too large")
    return msgspec.convert(json.loads(content), dict[str, Files])


def _write(folder: Path, name: str, files: Files) -> Sweep:
    """Writes the files of a sweep. Raises: ValueError if a name leads to another place."""
    sweep = Sweep(folder / name)
    if Path(name).name != name or "\0" in name or "sweep.json" not in files:
        raise ValueError(f"{name!r} is no sweep")
    for below, text in files.items():
        *parents, last = below.split("/")
        if not FILE_NAME.fullmatch(last) or len(parents) > 1 or {"", ".", ".."} & {*parents}:
            raise ValueError(f"{below!r:.80} is no file of a sweep")
        path = sweep.folder.joinpath(*parents, last)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return sweep
