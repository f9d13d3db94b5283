"""Sentences about the numbers of a sweep, and about missing runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from skinjob.config import RECIPE, TrainConfig, options_of
from skinjob.errors import RunError
from skinjob.report.measures import COMPARED
from skinjob.report.statistics import permutation_p, wilson_interval
from skinjob.report.tables import Series, SweepTable, by_lr
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import RunState, Status, filled_recipe

FEWEST_SEEDS = 3  # with 2 + 2 runs, p is at least 1/3
FEWEST_EPOCHS = 3  # the second half of two epochs has no change
SIGNIFICANT_P = 0.05
MOST_NAMED = 20  # missing runs; a new large sweep has a thousand
NOUNS = {"train": "trained layers", "schedule": "schedules", "precision": "precisions"}
COMPARED_FIELDS = [
    name
    for name, option in options_of(TrainConfig).items()
    if option.section == RECIPE and not option.axis
    # Compared in other ways: from sweep.json, or not part of the recipe.
    if name not in ("epochs", "positive", "device")
]
ONE_SIZE = "There is only one batch size: nothing to compare yet."
FEW_SEEDS = (
    f"With fewer than {FEWEST_SEEDS} seeds per batch size, a difference cannot be told "
    "from chance. To find out: skinjob submit --seeds 0-4"
)
NOTICES = {
    "untrained": "The backbone is untrained (random weights): these numbers say nothing about "
    "skin.",
    "demo": "A demo: the lesions are drawn, and the backbone was pretrained on drawn shapes. These "
    "numbers show what skinjob does; they say nothing about skin.",
}


def weights_notice(tables: Sequence[SweepTable]) -> str:
    """Returns a warning if the weights of a backbone are not fetched weights."""
    kinds = {table.weights_kind for table in tables}
    return next((notice for kind, notice in NOTICES.items() if kind in kinds), "")


def missing(tables: Sequence[SweepTable]) -> list[str]:
    """Returns a sentence for each run that cannot be read, then for each that lacks epochs."""
    return [*for_each(tables, _unread), *for_each(tables, _unfinished)]


def notes(tables: Sequence[SweepTable], all_series: Sequence[Series]) -> list[str]:
    """Returns first the differences between the sweeps, then the results of each sweep."""

    def compare_own(table: SweepTable) -> list[str]:
        return compare_by_lr([series for series in all_series if series.table is table])

    return [
        *_differences(tables),
        *(line for about in (_skipped, _chosen, compare_own) for line in for_each(tables, about)),
    ]


def for_each(
    tables: Sequence[SweepTable], lines_of: Callable[[SweepTable], list[str]]
) -> list[str]:
    """Returns the lines about each sweep, with its name if there are several sweeps."""
    return [
        f"{table.sweep.name}: {line}" if len(tables) > 1 else line
        for table in tables
        for line in lines_of(table)
    ]


def compare_by_lr(all_series: Sequence[Series]) -> list[str]:
    """Returns the lines of `compare` for each learning rate; equal general lines once."""
    by_rate = {lr: compare(own) for lr, own in by_lr(all_series).items()}
    if len(by_rate) <= 1:
        return [line for lines in by_rate.values() for line in lines]
    general = [
        line for line in (ONE_SIZE, FEW_SEEDS) if all(line in lines for lines in by_rate.values())
    ]
    special = [
        f"lr {lr!r}: {line}"
        for lr, lines in by_rate.items()
        for line in lines
        if line not in general
    ]
    return [*special, *general]


def compare(all_series: Sequence[Series]) -> list[str]:
    """Returns sentences on stability and accuracy of series with the same lr, smallest batch first.

    Only batch sizes at the same epoch are compared, because accuracy and its changes depend on the
    number of epochs.
    """
    epoch = max(series.epochs for series in all_series)
    comparable = [series for series in all_series if series.epochs == epoch]
    lines = []
    if behind := [f"{s.batch_size} (epoch {s.epochs})" for s in all_series if s.epochs < epoch]:
        lines.append(f"Not compared, because not yet at epoch {epoch}: {', '.join(behind)}.")
    if len(comparable) < 2:
        return [*lines, ONE_SIZE]
    if epoch >= FEWEST_EPOCHS and comparable[-1] is all_series[-1]:
        lines.append(_stability(comparable))
    lines.append(_accuracy(comparable))
    return lines if _has_seeds(comparable) else [*lines, FEW_SEEDS]


def known_state(run: Run) -> RunState | None:
    """Returns a run's state; None if it is missing, as in a copied folder, or unreadable."""
    try:
        return run.state() if run.state_file.exists() else None
    except (RunError, OSError):
        return None


def _unread(table: SweepTable) -> list[str]:
    return [f"{name}: not counted: {error.message}" for name, error in table.unread.items()]


def _unfinished(table: SweepTable) -> list[str]:
    """Returns a sentence for each readable run that failed or lacks epochs.

    If there are many, failed runs come first, and the last sentence counts the other runs.
    """
    num_done = table.rows.groupby("run")["epoch"].max().to_dict()
    lines = []
    for run in table.sweep.runs():
        status, line = _status(run, int(num_done.get(run.name, 0)), table.num_epochs)
        if line and run.name not in table.unread:
            lines.append((status, f"{run.name}: {line}"))
    if len(lines) > MOST_NAMED:
        lines.sort(key=lambda pair: pair[0] != "failed")
        counts = Counter(status for status, _ in lines[MOST_NAMED:])
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines[MOST_NAMED:] = [("", f"and {counts.total()} more runs: {text}")]
    return [line for _, line in lines]


def _status(run: Run, num_done: int, num_epochs: int) -> tuple[str, str]:
    """Returns a run's status, and a sentence on what it lacks; '' if it has all its epochs."""
    if not run.folder.is_dir():
        return "without a folder", "it has no folder"
    state = known_state(run)
    epochs = f"{num_done} of {num_epochs} epochs" if num_done else "no epoch yet"
    if state is None:
        status = "without a readable state.json"
        return status, "" if num_done >= num_epochs else f"{epochs}, and no readable state.json"
    status = state.status
    if status.is_final and status != Status.DONE:
        kind = f" ({state.failure})" if state.failure else ""
        reason = (state.reason or f"see {run.log_file}").strip().split("\n")[0]
        why = f": {reason}" if state.reason or status != Status.CANCELLED else ""
        return status, f"{status}{kind} with {epochs}{why}"
    if num_done >= num_epochs:
        return status, ""
    has_beaten = status == Status.RUNNING and state.heartbeat_utc
    beat = f", last heartbeat {state.heartbeat_utc}" if has_beaten else ""
    return status, f"{status}, {epochs}{beat}"


def _skipped(table: SweepTable) -> list[str]:
    """Returns a sentence on the images that the submit left out, if any."""
    num = len(table.info.images.skipped)
    images = "image was" if num == 1 else "images were"
    return [f"{num} faulty {images} left out of training and test."] if num else []


def _chosen(table: SweepTable) -> list[str]:
    """Returns a sentence on what the best epoch was chosen with, if not with the test images."""
    num = sum(table.counts.get(table.choosing.split, {}).values())
    line = f"The best epoch was chosen with the {num} validation images; its accuracy is on test."
    return [line] if table.choosing is not COMPARED else []


def _differences(tables: Sequence[SweepTable]) -> list[str]:
    """Returns a warning for each difference between the sweeps of a report."""
    recipes = [filled_recipe(table.info.recipe) for table in tables]
    values: dict[str, set[Any]] = {
        "images": {table.info.images.fingerprint for table in tables},
        "weights": {table.info.weights.sha256 for table in tables},
        "epochs": {table.num_epochs for table in tables},
        **{
            NOUNS.get(name, name.replace("_", " ")): {recipe[name] for recipe in recipes}
            for name in COMPARED_FIELDS
        },
        "positive classes": {table.positive_class for table in tables},
    }
    return [
        f"The sweeps differ in their {name}: compare them with care."
        for name, different in values.items()
        if len(different) > 1
    ]


def _stability(all_series: Sequence[Series]) -> str:
    """Returns a sentence on whether the largest batch is less stable.

    It compares the second half of the epochs. In the first half accuracy rises, and takes longer
    with fewer updates per epoch: that is a change, but not an instability.
    """
    first, last = all_series[0].epochs // 2 + 1, all_series[0].epochs
    changes = {series.batch_size: series.changes(first) for series in all_series}
    largest = max(changes)
    means = ", ".join(f"{100 * fmean(values):.2f} ({size})" for size, values in changes.items())
    text = (
        f"Is batch size {largest} less stable? Mean change of test accuracy from epoch to epoch "
        f"in epochs {first} to {last}, in percentage points: {means}"
    )
    if not _has_seeds(all_series):
        return f"{text}."
    of_largest = changes.pop(largest)
    of_others = [value for values in changes.values() for value in values]
    gap, p = fmean(of_largest) - fmean(of_others), permutation_p([of_others, of_largest])
    stable = "less stable" if gap > 0 else "more stable"
    verdict = "no difference shown" if p > SIGNIFICANT_P else stable
    return f"{text}; {largest} minus the others: {100 * gap:+.2f} ({_p(p, all_series)}): {verdict}."


def _accuracy(all_series: Sequence[Series]) -> str:
    """Returns a sentence on whether the batch sizes differ in test accuracy."""
    finals = {series.batch_size: series.final(COMPARED) for series in all_series}
    means = {size: fmean(values) for size, values in finals.items()}
    worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    text = f"Test accuracy at epoch {all_series[0].epochs}: "
    if means[worst] == means[best]:
        return f"{text}{100 * means[best]:.1f} % with every batch size: no difference shown."
    text += (
        f"{100 * means[worst]:.1f} % ({worst}) to {100 * means[best]:.1f} % ({best}), "
        f"{100 * (means[best] - means[worst]):.1f} percentage points apart"
    )
    if _has_seeds(all_series):
        p = permutation_p(list(finals.values()))
        is_shown = p <= SIGNIFICANT_P
        verdict = "they differ on these test images" if is_shown else "no difference shown"
        return f"{text} ({_p(p, all_series)}): {verdict}."
    num_images = all_series[0].table.num_compared
    if not num_images:
        return f"{text}."
    (_, high), (low, _) = (wilson_interval(means[size], num_images) for size in (worst, best))
    verdict = "overlap, no difference shown" if high >= low else "do not overlap"
    return f"{text}; the 95 % intervals {verdict} ({num_images} test images)."


def _has_seeds(all_series: Sequence[Series]) -> bool:
    """Returns True if each batch size has enough runs for a test of differences."""
    return min(series.num_counted for series in all_series) >= FEWEST_SEEDS


def _p(p: float, all_series: Sequence[Series]) -> str:
    num_runs = sum(series.num_counted for series in all_series)
    return f"permutation test over {num_runs} runs, p = {p:.2g}"
