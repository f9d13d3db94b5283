"""A sweep's metrics.csv files as tables: every row, a series per batch size and lr, one summary.

Accuracies are fractions 0..1, times seconds, throughout. Percent is for people: see `text`.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import stat
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinjob.errors import RunError
from skinjob.sweeps.layout import METRICS, Run, Sweep

TEXTS = ("sweep", "run", "time_utc")
INTEGERS = ("batch_size", "seed", "epoch", "updates")
QUALITIES = ("test_auc", "test_sensitivity", "test_specificity")
OPTIONAL = ("train_loss", "test_loss", *QUALITIES)
"""Columns that may be blank: a loss that diverged, the AUC of a test set of one class."""

Z_95 = statistics.NormalDist().inv_cdf(0.975)  # 1.96

NAMED_LR = re.compile(r"-lr(.+)-seed")

COMPLETE_END = re.compile(r",\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\r?$")
NAMED_GRID = re.compile(r"bs(\d+)-lr.+-seed(\d+)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|nan|inf)", re.ASCII)
"""As jobs write them; Python would take 0_5 and full-width digits too."""

Value = str | int | float


@dataclass(frozen=True)
class SweepTable:
    """A sweep and every row that its runs have written."""

    sweep: Sweep
    info: dict[str, Any]
    """sweep.json."""
    texts: list[list[str]]
    """The rows as they stand in the files: METRICS, all text."""
    rows: pd.DataFrame
    """The same rows as numbers; a blank is NaN. Their lr is the optimizer's in that epoch."""
    lrs: dict[str, float]
    """The lr that each run with a row was asked for, which a schedule starts from."""
    unread: dict[str, RunError]
    """The runs of which a file cannot be read, and why. No number counts them."""

    @property
    def planned(self) -> int:
        """Epochs that each run was asked for."""
        return int(self.info["recipe"]["epochs"])

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class; empty where sweep.json does not say."""
        return dict(self.info.get("images", {}).get("counts", {}))

    @property
    def test_images(self) -> int:
        """Images that the test accuracy is over; 0 where sweep.json does not say."""
        return sum(self.counts.get("test", {}).values())

    @property
    def weights_kind(self) -> str:
        """What the backbone's weights are: fetched, demo or untrained."""
        weights = self.info.get("weights", {})
        return str(weights.get("kind", "untrained" if weights.get("untrained") else "fetched"))


@dataclass(frozen=True)
class Curve:
    """One column of a series, epoch by epoch, over the runs that reached its last epoch."""

    epochs: list[int]
    updates: list[int]
    mean: list[float]
    low: list[float]
    """The lowest of the runs; with one run, the mean."""
    high: list[float]


@dataclass(frozen=True)
class Series:
    """The runs of one batch size and lr, which differ in their seed alone.

    Numbers are over the runs that got furthest, so that no mean mixes epochs: a run that failed or
    is behind counts for nothing until it is there, and the report names it as missing.
    """

    table: SweepTable
    batch_size: int
    lr: float
    rows: pd.DataFrame
    """The rows of all its runs."""

    @cached_property
    def epochs(self) -> int:
        """The last epoch that any of its runs finished."""
        return int(self.rows["epoch"].max())

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The rows of the runs that reached the last epoch."""
        return self.rows[self._last_epochs == self.epochs]

    @property
    def num_counted(self) -> int:
        """The runs that reached the last epoch."""
        return len(self.counted) // self.epochs

    @cached_property
    def behind(self) -> pd.DataFrame:
        """The rows of the runs that did not."""
        return self.rows[self._last_epochs < self.epochs]

    @property
    def num_behind(self) -> int:
        """The runs that did not."""
        return int((self.behind["epoch"] == 1).sum())

    def final(self, column: str) -> list[float]:
        """Returns a column at the last epoch, a value per run."""
        return [float(value) for value in self._by_run(column)[:, -1]]

    def accuracy_changes(self, first_epoch: int = 1) -> list[float]:
        """Returns each run's mean absolute change of test accuracy from an epoch to the next.

        Changes count from *first_epoch* on; where there is none it is NaN.
        """
        changes = np.abs(np.diff(self._by_run("test_accuracy")[:, first_epoch - 1 :]))
        if not changes.size:
            return [float("nan")] * self.num_counted
        return [float(change) for change in changes.mean(axis=1)]

    def curve(self, column: str) -> Curve:
        """Returns a column against epochs and updates.

        Its mean is NaN where a run's value is missing: passing over it in silence would flatter.
        """
        values = self._by_run(column)
        return Curve(
            epochs=list(range(1, self.epochs + 1)),
            updates=[int(updates) for updates in self._by_run("updates").max(axis=0)],
            mean=values.mean(axis=0).tolist(),
            low=np.fmin.reduce(values).tolist(),
            high=np.fmax.reduce(values).tolist(),
        )

    @cached_property
    def _last_epochs(self) -> pd.Series:
        """For each row the last epoch of its run."""
        return self.rows.groupby("run")["epoch"].transform("max")

    def _by_run(self, column: str) -> NDArray[np.float64]:
        """Returns a column of the counted runs, a line per run: (num_counted, epochs).

        Each of them has the epochs 1, 2, ... in this order: `read_run` accepts no other.
        """
        values: NDArray[np.float64] = self.counted[column].to_numpy(np.float64)
        return values.reshape(-1, self.epochs)


def read_sweep(sweep: Sweep) -> SweepTable:
    """Returns every row that the sweep's runs have written so far.

    A run of which a file cannot be read has no rows and is in `unread`.

    Raises: RunError when sweep.json lacks what a report needs.
    """
    info = sweep.info()
    if "runs" not in info or "epochs" not in info.get("recipe", {}):
        raise RunError(
            f"{sweep.sweep_file}: no 'runs' or no 'recipe' with 'epochs' in it",
            f"cat {shlex.quote(str(sweep.sweep_file))}",
        )
    texts: list[list[str]] = []
    rows: list[list[Value]] = []
    lrs = {}
    unread = {}
    for run in sweep.runs():
        try:
            own_texts, own_rows = read_run(run)
            if _is_there(run.state_file):
                run.state()
            if _is_there(run.config_file) or own_rows:
                lrs[run.name] = _lr(run)
        except RunError as error:
            unread[run.name] = error
            continue
        texts += own_texts
        rows += own_rows
    return SweepTable(sweep, info, texts, pd.DataFrame(rows, columns=list(METRICS)), lrs, unread)


def read_run(run: Run) -> tuple[list[list[str]], list[list[Value]]]:
    """Returns the rows of a run's metrics.csv, in the order of METRICS: as text, and as values.

    Raises: RunError, naming file and line, when a row is ill-formed or an epoch is not the next,
    and naming the file when it cannot be read.
    """
    if not _is_there(run.metrics_file):
        return [], []
    try:
        content = _whole_lines(run.metrics_file.read_bytes())
    except OSError as error:
        raise _unreadable(run.metrics_file, error.strerror) from None
    reader = csv.reader(io.StringIO(content, newline=""))
    texts: list[list[str]] = []
    rows: list[list[Value]] = []
    try:
        if next(reader, list(METRICS)) != list(METRICS):
            raise ValueError("the header is not " + ",".join(METRICS))
        for text_row in reader:
            rows.append(_values(run, text_row, epoch=len(rows) + 1))
            texts.append(text_row)
    except (ValueError, csv.Error) as error:
        raise _damaged(run, max(1, reader.line_num), str(error)) from None
    return texts, rows


def all_series(tables: Sequence[SweepTable]) -> list[Series]:
    """Returns the series that have rows: sweep by sweep, lr by lr, the smallest batch size first.

    A run's lr is the one it was asked for; the column lr follows its schedule.
    """
    return [
        Series(table, int(batch_size), float(lr), rows)
        for table in tables
        for (lr, batch_size), rows in table.rows.groupby(
            [table.rows["run"].map(table.lrs).rename("asked_lr"), "batch_size"]
        )
    ]


def by_lr(series: Sequence[Series]) -> dict[float, list[Series]]:
    """Returns the series of each lr, in their order; the smallest lr first."""
    return {
        lr: [one for one in series if one.lr == lr] for lr in sorted({one.lr for one in series})
    }


def summarize(series: Sequence[Series]) -> pd.DataFrame:
    """Returns one row per series; accuracies as fractions, seconds over all runs of the series."""
    return pd.DataFrame([_summary_row(one) for one in series])


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion that was measured on *num_images*.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference"; unlike
    accuracy +- 1.96 standard errors it stays inside 0..1 and is right near the ends.

    >>> [round(bound, 4) for bound in wilson_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    if not num_images:
        return float("nan"), float("nan")
    spread = Z_95**2 / num_images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = (accuracy * (1 - accuracy) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation; the latter is NaN for fewer than two values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return statistics.fmean(values), sd


def _summary_row(series: Series) -> dict[str, Any]:
    accuracy, accuracy_sd = mean_and_sd(series.final("test_accuracy"))
    low, high = wilson_interval(accuracy, series.table.test_images)
    test_loss, test_loss_sd = mean_and_sd(series.final("test_loss"))
    change, change_sd = mean_and_sd(series.accuracy_changes())
    test_curve = series.curve("test_accuracy")
    best = max(range(len(test_curve.mean)), key=test_curve.mean.__getitem__)
    return {
        "sweep": series.table.sweep.name,
        "batch_size": series.batch_size,
        "lr": series.lr,
        "runs": series.num_counted,
        "epochs": series.epochs,
        "updates": test_curve.updates[-1],
        "final_test_accuracy": accuracy,
        "final_test_accuracy_low": low,
        "final_test_accuracy_high": high,
        "final_test_accuracy_sd": accuracy_sd,
        "best_test_accuracy": test_curve.mean[best],
        "best_epoch": test_curve.epochs[best],
        "final_train_accuracy": statistics.fmean(series.final("train_accuracy")),
        "final_train_loss": statistics.fmean(series.final("train_loss")),
        "final_test_loss": test_loss,
        "final_test_loss_sd": test_loss_sd,
        **{f"final_{name}": statistics.fmean(series.final(name)) for name in QUALITIES},
        "accuracy_change": change,
        "accuracy_change_sd": change_sd,
        "seconds": float(series.rows["seconds"].sum()),
    }


def _whole_lines(content: bytes) -> str:
    """Returns the text of a CSV without a last line that is still being written.

    A last line may lack its line break and be whole, as editors leave it; it ends in a time then.
    """
    text = content.decode("utf-8-sig", errors="replace")  # Excel puts a mark before the first line
    return text if COMPLETE_END.search(text) else text[: text.rfind("\n") + 1]


def _lr(run: Run) -> float:
    """Returns the lr that a run was asked for.

    It is in config.json; the name carries it where a copied folder came without that file.
    """
    named = NAMED_LR.search(run.name)
    if named and not run.config_file.exists():
        return float(named[1])
    return float(run.config().lr)


def _values(run: Run, texts: list[str], *, epoch: int) -> list[Value]:
    """Returns a row of metrics.csv as values. Raises: ValueError, saying what is wrong with it."""
    if len(texts) != len(METRICS):
        raise ValueError(f"{len(texts)} values, not {len(METRICS)}")
    values: list[Value] = []
    for name, read, text in zip(METRICS, READERS, texts, strict=True):
        try:
            values.append(read(text))
        except ValueError:
            raise ValueError(f"{name} is {text!r:.80}") from None
    if values[RUN] != run.name:
        raise ValueError(f"a row of run {values[RUN]!r:.80}")
    for name, asked in _named_grid(run).items():
        if values[METRICS.index(name)] != asked:
            raise ValueError(f"{name} {values[METRICS.index(name)]} in a run of {asked}")
    if values[EPOCH] != epoch:
        raise ValueError(f"epoch {values[EPOCH]} where epoch {epoch} is due")
    return values


def _named_grid(run: Run) -> dict[str, int]:
    """Returns the batch size and seed that a run's name tells, where it is one that we gave."""
    named = NAMED_GRID.fullmatch(run.name)
    return {"batch_size": int(named[1]), "seed": int(named[2])} if named else {}


def _text(text: str) -> str:
    if not text.isprintable() or "\ufffd" in text:
        raise ValueError(text)
    return text


def _integer(text: str) -> int:
    """Returns a count that a table holds. Raises: ValueError."""
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise ValueError(text)
    return int(text)


def _float(text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise ValueError(text)
    return float(text)


def _float_or_blank(text: str) -> float:
    return _float(text or "nan")


def _accuracy(text: str) -> float:
    """Returns a fraction. Raises: ValueError for what is none: NaN, or a value in percent."""
    value = _float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _reader(name: str) -> Callable[[str], Value]:
    """Returns what turns a column's text into its value, or raises ValueError."""
    if name in TEXTS:
        return _text
    if name in INTEGERS:
        return _integer
    if name in OPTIONAL:
        return _float_or_blank
    return _accuracy if name.endswith("_accuracy") else _float


def _is_there(file: Path) -> bool:
    """Says whether a file is there. Raises: RunError when it cannot be read, or is no file."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(file, error.strerror) from None
    except ValueError as error:  # a run's name with a NUL in it
        raise _unreadable(file, str(error)) from None
    if not stat.S_ISREG(mode):  # a pipe would never end
        raise _unreadable(file, "it is not a file")
    return True


def _unreadable(file: Path, reason: str | None) -> RunError:
    return RunError(f"{file}: {reason}", f"ls -ld {shlex.quote(str(file))}")


def _damaged(run: Run, line: int, fault: str) -> RunError:
    file = run.metrics_file
    return RunError(f"{file}, line {line}: {fault}", f"sed -n {line}p {shlex.quote(str(file))}")


READERS = tuple(map(_reader, METRICS))
RUN, EPOCH = METRICS.index("run"), METRICS.index("epoch")
