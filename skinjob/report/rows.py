"""Reads metrics.csv and tests.csv of a run, and names what is wrong in them."""

from __future__ import annotations

import csv
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skinjob.console import printable
from skinjob.errors import RunError
from skinjob.report.measures import COMPARED
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS, TESTS

TEXTS = ("sweep", "run", "time_utc")
INTEGERS = ("batch_size", "seed", "epoch", "updates")
NEEDED = ("run", "epoch", "updates", COMPARED.column)
"""Columns that a report needs. Others may be missing or empty."""

Value = str | int | float
Tests = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class MetricsFile:
    """The content of a run's metrics.csv."""

    header: Sequence[str] = ()
    texts: Sequence[Sequence[str]] = ()
    """The rows of the file, with all columns."""
    values: Sequence[Sequence[Value]] = ()
    """The same rows in the order of METRICS; missing values are NaN."""


def read_run(run: Run) -> MetricsFile:
    """Returns the rows of a run's metrics.csv, which may not exist yet.

    Columns are read by name. Unknown columns stay text. Missing columns are NaN.

    Raises: RunError if the file cannot be read, or with the line if a value is wrong.
    """
    texts: list[list[str]] = []
    values: list[list[Value]] = []

    def take(header: Sequence[str], row: list[str]) -> None:
        is_plain = "".join(row).isprintable()
        texts.append(row if is_plain else [printable(text) for text in row])
        values.append(_values(run, header, row, epoch=len(texts)))

    return MetricsFile(_read_rows(run.metrics_file, NEEDED, take), texts, values)


def read_tests(run: Run) -> Tests:
    """Returns the columns of a run's tests.csv; empty if it has none. Raises: as `read_run`."""
    columns: dict[str, list[float]] = {name: [] for name in TESTS}
    last = 0

    def take(header: Sequence[str], row: list[str]) -> None:
        nonlocal last
        cells = dict(zip(header, row, strict=True))
        for name, values in columns.items():
            try:
                is_count = name in ("update", "epoch")
                values.append(_integer(cells[name]) if is_count else float(cells[name] or "nan"))
            except ValueError:
                raise ValueError(f"{name} is {cells[name]!r:.80}") from None
        before, last = last, int(columns["update"][-1])
        if last <= before:
            raise ValueError(f"update {last} after update {before}")

    return columns if _read_rows(run.tests_file, tuple(TESTS), take) else {}


def _read_rows(
    path: Path, needed: Sequence[str], take: Callable[[Sequence[str], list[str]], None]
) -> Sequence[str]:
    """Calls *take* with the header and each row of a CSV file; returns the header.

    The file may not exist. Raises: RunError with the line for which *take* raises ValueError.
    """
    if not is_file(path):
        return ()
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            # If it were not strict, an open quote would hide the rows after it.
            reader = csv.reader(lines, strict=True)
            try:
                header = [printable(name) for name in next(reader, [])]
                if header and (missing := [name for name in needed if name not in header]):
                    raise ValueError(f"no column {', '.join(missing)}")
                for row in reader:
                    if len(row) != len(header):
                        raise ValueError(f"{len(row)} values, not {len(header)}")
                    take(header, row)
            except (ValueError, csv.Error) as error:
                line = max(1, reader.line_num)
                show = f"sed -n {line}p {shlex.quote(str(path))}"
                raise RunError(f"{path}, line {line}: {error}", show) from None
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    return header


def _values(run: Run, header: Sequence[str], row: Sequence[str], *, epoch: int) -> list[Value]:
    """Returns a row in the order of METRICS. Raises: ValueError with the wrong value."""
    values: dict[str, Value] = {}
    for name, text in zip(header, row, strict=True):
        if name in READERS and (text or name in NEEDED):
            try:
                values[name] = READERS[name](text)
            except ValueError:
                raise ValueError(f"{name} is {text!r:.80}") from None
    if values["run"] != run.name:
        raise ValueError(f"a row of run {values['run']!r:.80}")
    if values["epoch"] != epoch:
        raise ValueError(f"epoch {values['epoch']}, but epoch {epoch} is next")
    return [values.get(name, float("nan")) for name in METRICS]


def _reader(name: str) -> Callable[[str], Value]:
    """Returns the function from a text of a column to its value. It raises ValueError."""
    if name in TEXTS:
        return str
    if name in INTEGERS:
        return _integer
    return _fraction if name.endswith("_accuracy") else float


def _integer(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:  # the limit of a table
        raise ValueError(text)
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:  # NaN, or a value in percent
        raise ValueError(text)
    return value


def is_file(path: Path) -> bool:
    """Returns whether a file exists. Raises: RunError if it cannot be read or is not a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except ValueError as error:  # a run's name with a NUL in it
        raise _unreadable(path, str(error)) from None
    if not stat.S_ISREG(mode):  # a read from a pipe may never end
        raise _unreadable(path, "it is not a file")
    return True


def _unreadable(path: Path, reason: str | None) -> RunError:
    return RunError(f"{path}: {reason}", f"ls -ld {shlex.quote(str(path))}")


READERS = {name: _reader(name) for name in METRICS}
