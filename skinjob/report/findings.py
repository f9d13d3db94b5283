"""What a sweep's numbers say in words, and what is missing from them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skinjob.errors import RunError
from skinjob.report.tables import Series, SweepTable, by_lr, wilson_interval
from skinjob.sweeps.layout import Run, RunState

SHUFFLES = 9_999
FEWEST_SEEDS = 3  # with two runs a side, no arrangement is rarer than one in three
FEWEST_EPOCHS = 3  # of two, the second half is one epoch, and has no change in it
P_SHOWN = 0.05
ALONE = "One batch size alone: there is nothing to compare yet."
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
MOST_LACKS = 20  # named one by one; a big sweep just submitted has a thousand


def weights_notice(tables: Sequence[SweepTable]) -> str:
    """Returns what stands above all numbers, empty where every backbone was fetched."""
    kinds = {table.weights_kind for table in tables}
    return next((words for kind, words in NOTICES.items() if kind in kinds), "")


def unread(table: SweepTable) -> list[str]:
    """Returns a sentence for each run that cannot be read, and so is in no number."""
    return [f"{name}: not counted: {fault.message}" for name, fault in table.unread.items()]


def missing(table: SweepTable) -> list[str]:
    """Returns a sentence for each run whose epochs are not all there, the failed first if many.

    Those that cannot be read are in `unread`. Of many runs the last sentence counts those that
    would be too many to name.
    """
    done = table.rows.groupby("run")["epoch"].max().to_dict()
    found = [
        (run, lack)
        for run in table.sweep.runs()
        if run.name not in table.unread
        and (lack := _lack(run, int(done.get(run.name, 0)), table.planned))
    ]
    if len(found) <= MOST_LACKS:
        return [lack for _, lack in found]
    found.sort(key=lambda pair: _word(pair[0]) != "failed")
    rest = Counter(_word(run) for run, _ in found[MOST_LACKS:])
    words = ", ".join(f"{count} {word}" for word, count in rest.items())
    return [*(lack for _, lack in found[:MOST_LACKS]), f"and {rest.total()} more runs: {words}"]


def compare_by_lr(series: Sequence[Series]) -> list[str]:
    """Returns what `compare` says of the series of each lr, and once what it says of every lr."""
    said = {lr: compare(own) for lr, own in by_lr(series).items()}
    if len(said) == 1:
        return said.popitem()[1]
    of_all = [line for line in (ALONE, FEW_SEEDS) if all(line in lines for lines in said.values())]
    of_one = [
        f"lr {lr!r}: {line}" for lr, lines in said.items() for line in lines if line not in of_all
    ]
    return [*of_one, *of_all]


def compare(series: Sequence[Series]) -> list[str]:
    """Returns what the series of one lr, smallest batch first, say on stability and accuracy.

    Only batch sizes at the same epoch are compared: the change from epoch to epoch, like the
    accuracy, depends on how long a run has trained.
    """
    reached = max(one.epochs for one in series)
    alike = [one for one in series if one.epochs == reached]
    behind = [f"{one.batch_size} (epoch {one.epochs})" for one in series if one.epochs < reached]
    lines = []
    if behind:
        lines.append(f"Not compared, for not being at epoch {reached}: {', '.join(behind)}.")
    if len(alike) < 2:
        return [*lines, ALONE]
    if reached >= FEWEST_EPOCHS and alike[-1] is series[-1]:
        lines.append(_stability(alike))
    lines.append(_accuracy(alike))
    if _fewest_runs(alike) < FEWEST_SEEDS:
        lines.append(FEW_SEEDS)
    return lines


def differences(tables: Sequence[SweepTable]) -> list[str]:
    """Returns a warning for each thing that sweeps in one report do not have in common."""
    found = {
        "images": {table.info.get("images", {}).get("fingerprint") for table in tables},
        "weights": {table.info.get("weights", {}).get("sha256") for table in tables},
        "epochs": {table.planned for table in tables},
        "trained layers": {table.info["recipe"].get("train") for table in tables},
        "schedules": {table.info["recipe"].get("schedule") for table in tables},
        "precisions": {table.info["recipe"].get("precision") for table in tables},
        "positive classes": {positive_class(table) for table in tables},
    }
    return [
        f"The sweeps differ in their {name}: compare them with care."
        for name, values in found.items()
        if len(values) > 1
    ]


def positive_class(table: SweepTable) -> str:
    """Returns the class that sensitivity, specificity and AUC look for."""
    images = table.info.get("images", {})
    last = (images.get("classes") or ["?"])[-1]  # what it is in sweeps that do not say
    return str(images.get("positive", last))


def skipped(table: SweepTable) -> list[str]:
    """Returns a sentence on the images that the sweep was submitted without, if there are any."""
    found = table.info.get("images", {}).get("skipped", [])
    if not found:
        return []
    were = "image was" if len(found) == 1 else "images were"
    return [f"{len(found)} faulty {were} skipped: neither trained nor tested on."]


def permutation_p(values: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Returns how often shuffled labels part the values at least as far as the true ones do.

    How far is the sum of squares between the labels, as an analysis of variance has it; with two
    labels it orders the shuffles as the gap between their means does.

    Phipson & Smyth (2010), "Permutation P-values should never be zero": the true arrangement counts
    as one of the shuffles. The shuffles are the same each time.
    """
    draw = np.random.default_rng(0)
    counts = np.bincount(labels)
    centred = values - values.mean()

    def between(arrangement: NDArray[np.int64]) -> float:
        sums = np.bincount(arrangement, centred)
        return float(sums @ (sums / counts))

    seen = between(labels) - 1e-12  # sums in another order differ in the last digits
    hits = sum(between(draw.permutation(labels)) >= seen for _ in range(SHUFFLES))
    return (1 + hits) / (1 + SHUFFLES)


def _lack(run: Run, done: int, planned: int) -> str | None:
    """Returns what is missing of a run, or None when it has all its epochs and did not fail."""
    if not run.folder.is_dir():
        return f"{run.name}: its folder is not here"
    state = known_state(run)
    epochs = f"{done} of {planned} epochs" if done else "no epoch yet"
    if state is None:
        return None if done >= planned else f"{run.name}: {epochs}, and no readable state.json"
    if state.state == "failed":
        cause = (state.error or f"see {run.log_file}").strip().split("\n")[0]
        fault = f" ({state.fault})" if state.fault else ""
        return f"{run.name}: failed{fault} with {epochs}: {cause}"
    if done >= planned:
        return None
    heard = f", last heard of at {state.heartbeat_utc}" if state.heartbeat_utc else ""
    return f"{run.name}: {state.state}, {epochs}{heard if state.state == 'running' else ''}"


def known_state(run: Run) -> RunState | None:
    """Returns a run's word on itself; None where a copied folder came without it."""
    try:
        return run.state() if run.state_file.exists() else None
    except (RunError, OSError):
        return None


def _word(run: Run) -> str:
    """Returns a run's state in a word."""
    state = known_state(run)
    return state.state if state else "without a readable state.json"


def _stability(series: Sequence[Series]) -> str:
    """Returns a sentence on the recipe's claim that the largest batch is the less stable one.

    It looks at the second half of the epochs: in the first, accuracy climbs, the longer the fewer
    updates an epoch has, and that is change but no lack of stability.
    """
    first, last = series[0].epochs // 2 + 1, series[0].epochs
    changes = {one.batch_size: one.accuracy_changes(first) for one in series}
    largest = max(changes)
    values = ", ".join(f"{100 * statistics.fmean(c):.2f} ({size})" for size, c in changes.items())
    said = (
        f"Is batch size {largest} less stable? Mean change of test accuracy from epoch to epoch "
        f"in epochs {first} to {last}, in percentage points: {values}"
    )
    if _fewest_runs(series) < FEWEST_SEEDS:
        return f"{said}."
    numbers, labels = _flat(list(changes.values()))
    is_largest = labels == labels.max()
    more = numbers[is_largest].mean() - numbers[~is_largest].mean()
    p = permutation_p(numbers, is_largest.astype(np.int64))
    verdict = "no difference shown" if p > P_SHOWN else "less stable" if more > 0 else "more stable"
    return f"{said}; {largest} minus the rest: {100 * more:+.2f} ({_p(p, series)}): {verdict}."


def _accuracy(series: Sequence[Series]) -> str:
    """Returns a sentence on whether the batch sizes differ in test accuracy."""
    finals = {one.batch_size: one.final("test_accuracy") for one in series}
    means = {size: statistics.fmean(values) for size, values in finals.items()}
    worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    if means[worst] == means[best]:
        return (
            f"Test accuracy at epoch {series[0].epochs}: {100 * means[best]:.1f} % with every one "
            "of the batch sizes: no difference shown."
        )
    said = (
        f"Test accuracy at epoch {series[0].epochs}: {100 * means[worst]:.1f} % ({worst}) to "
        f"{100 * means[best]:.1f} % ({best}), {100 * (means[best] - means[worst]):.1f} "
        "percentage points apart"
    )
    if _fewest_runs(series) >= FEWEST_SEEDS:
        p = permutation_p(*_flat(list(finals.values())))
        verdict = "no difference shown" if p > P_SHOWN else "they differ on these test images"
        return f"{said} ({_p(p, series)}): {verdict}."
    num_images = series[0].table.test_images
    if not num_images:
        return f"{said}."
    overlap = (
        wilson_interval(means[worst], num_images)[1] >= wilson_interval(means[best], num_images)[0]
    )
    verdict = "intervals overlap, no difference shown" if overlap else "intervals do not overlap"
    return f"{said}; the 95 % {verdict} ({num_images} test images)."


def _flat(groups: Sequence[Sequence[float]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns all values in one row, and beside each the number of its group."""
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    return values, np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _fewest_runs(series: Sequence[Series]) -> int:
    return min(one.num_counted for one in series)


def _p(p: float, series: Sequence[Series]) -> str:
    num_runs = sum(one.num_counted for one in series)
    return f"permutation test over {num_runs} runs, p = {p:.2g}"
