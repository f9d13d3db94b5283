"""Sentences about missing runs, left-out images and differences between sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from skinjob.config import RECIPE, TrainConfig, options_of
from skinjob.errors import RunError
from skinjob.report.baselines import unreadable
from skinjob.report.embedded import Kept
from skinjob.report.measures import CHOSEN_ON_TEST, COMPARED, percent
from skinjob.report.tables import Series, SweepTable
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import RunState, Status, filled_recipe
from skinjob.words import pluralize

MOST_NAMED = 20  # missing runs; a new large sweep has a thousand
NOUNS = {"train": "trained layers", "schedule": "schedules", "precision": "precisions"}
COMPARED_FIELDS = [
    name
    for name, option in options_of(TrainConfig).items()
    if option.section == RECIPE and not option.axis
    # Compared in other ways: from sweep.json, or not part of the recipe.
    if name not in ("epochs", "positive", "device")
]
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


def warnings(
    tables: Sequence[SweepTable],
    all_series: Sequence[Series],
    num_copies: Mapping[str, int],
    kept: Kept,
) -> list[str]:
    """Returns what a reader of the numbers must know, the most important first.

    *num_copies* are the test images with a copy in train, by sweep.
    """

    def about_images(table: SweepTable) -> list[str]:
        own = [series for series in all_series if series.table is table]
        return _about_images(table, own, num_copies.get(table.sweep.name, 0))

    lines = [
        *filter(None, [weights_notice(tables)]),
        *_differences(tables),
        *(["Runs are missing or not complete: they are listed below."] if kept.missing else []),
        *for_each(tables, about_images),
    ]
    return [*lines, *(note for note in kept.notes if note not in lines)]


def missing(tables: Sequence[SweepTable]) -> list[str]:
    """Returns a sentence for each run that cannot be read, then for each that lacks epochs."""
    return [*for_each(tables, _unread), *for_each(tables, _unfinished)]


def notes(tables: Sequence[SweepTable]) -> list[str]:
    """Returns the differences between the sweeps, then remarks about the images of each."""
    return [
        *_differences(tables),
        *(line for about in (_skipped, _chosen, unreadable) for line in for_each(tables, about)),
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
    column, total = (
        ("updates", table.info.updates) if table.info.updates else ("epoch", table.num_epochs)
    )
    num_done = table.rows.groupby("run")[column].max().to_dict()
    lines = []
    for run in table.sweep.runs():
        status, line = _status(run, int(num_done.get(run.name, 0)), total, table.counts_in)
        if line and run.name not in table.unread:
            lines.append((status, f"{run.name}: {line}"))
    if len(lines) > MOST_NAMED:
        lines.sort(key=lambda pair: pair[0] != "failed")
        counts = Counter(status for status, _ in lines[MOST_NAMED:])
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines[MOST_NAMED:] = [("", f"and {counts.total()} more runs: {text}")]
    return [line for _, line in lines]


def _status(run: Run, num_done: int, total: int, unit: str) -> tuple[str, str]:
    """Returns a run's status, and a sentence on what it lacks; '' if it has all its epochs."""
    if not run.folder.is_dir():
        return "without a folder", "it has no folder"
    state = known_state(run)
    done = f"{num_done} of {total} {unit}" if num_done else "no epoch yet"
    if state is None:
        status = "without a readable state.json"
        return status, "" if num_done >= total else f"{done}, and no readable state.json"
    status = state.status
    if status.is_final and status != Status.DONE:
        kind = f" ({state.failure})" if state.failure else ""
        reason = (state.reason or f"see {run.log_file}").strip().split("\n")[0]
        why = f": {reason}" if state.reason or status != Status.CANCELLED else ""
        return status, f"{status}{kind} with {done}{why}"
    if num_done >= total:
        return status, ""
    has_beaten = status == Status.RUNNING and state.heartbeat_utc
    beat = f", last heartbeat {state.heartbeat_utc}" if has_beaten else ""
    return status, f"{status}, {done}{beat}"


def _about_images(table: SweepTable, own: Sequence[Series], num_copies: int) -> list[str]:
    """Returns a warning if test images are copies, and if a shortcut is as good as the runs."""
    lines = []
    if num_copies:
        verb = "has" if num_copies == 1 else "have"
        lines.append(
            f"{pluralize(num_copies, 'test image')} of {table.num_compared} {verb} a copy in "
            "train, which makes every test number too good."
        )
    reached = table.info.images.shortcut.get(COMPARED.column, 0.0)
    if reached >= max((fmean(series.final(COMPARED)) for series in own), default=1.0):
        lines.append(
            "A classifier that sees only file size, image size, border and mean colour is right "
            f"for {percent(reached)} % of the test images. No batch size is better."
        )
    return lines


def _skipped(table: SweepTable) -> list[str]:
    """Returns a sentence on the images that the submit left out, if any."""
    num = len(table.info.images.skipped)
    images = "image was" if num == 1 else "images were"
    return [f"{num} faulty {images} left out of training and test."] if num else []


def _chosen(table: SweepTable) -> list[str]:
    """Returns a sentence on which images chose the best epoch, the cutoffs and the best lrs."""
    if table.choosing is COMPARED:
        option = options_of(TrainConfig)["val_fraction"].usage(0.15)
        return [
            f"{CHOSEN_ON_TEST} Chosen with the test images, so too good for new images. "
            f"skinjob submit {option} chooses with training images that it holds out."
        ]
    num = sum(table.counts.get(table.choosing.split, {}).values())
    return [
        f"What is chosen, such as the best epoch and the cutoffs, is chosen with the {num} "
        "validation images; the test images give the final numbers only."
    ]


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
