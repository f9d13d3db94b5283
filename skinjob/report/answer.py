"""The answer, in at most 90 words: is a larger batch less stable, or behind?

The sentences are fixed; the comparison fills in sizes and numbers. If they are too many, the least
important are left out, and the tables have them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from skinjob.config import TrainConfig, options_of
from skinjob.report.comparison import (
    ALPHA,
    COLUMNS,
    FEWEST_FOR_VERDICT,
    NAMES,
    Comparison,
    Contrast,
    Family,
    Verdict,
    reached,
)
from skinjob.report.details import p_text
from skinjob.report.measures import COMPARED, signed
from skinjob.report.stability import Stability
from skinjob.report.statistics import sign_flip_p
from skinjob.report.tables import SweepTable
from skinjob.sweeps.records import filled_recipe
from skinjob.words import pluralize

MOST_WORDS = 90
ENOUGH_SEEDS = 10  # with 8 or more, each of six pairs can be shown by an exact test
SETTLE = "To settle it:"
ONE_SIZE = "Fewer than two batch sizes have results: nothing to compare yet."


@dataclass(frozen=True)
class Answer:
    """The answer about a sweep."""

    text: str
    question: str = ""
    """The open question that `command` answers; empty if there is none, or no such command."""
    command: str = ""

    @property
    def lines(self) -> list[str]:
        """The lines for a terminal."""
        return [self.text, *([f"{self.question} {self.command}"] if self.command else [])]


def answer(comparison: Comparison) -> Answer:
    """Returns the answer about a sweep."""
    lead, other = comparison.lead, comparison.other
    updates = comparison.family("updates")
    ranked: list[tuple[int, str]] = []  # by importance, in the order of reading

    def say(rank: int, text: str) -> None:
        if text:
            ranked.append((rank, text))

    if comparison.behind:
        unit = comparison.table.counts_in.removesuffix("s")
        sizes = ", ".join(f"{s.batch_size} ({unit} {reached(s):,})" for s in comparison.behind)
        say(0, f"Not compared, because not at the last {unit}: {sizes}.")
    if lead is None:
        say(0, _diverged(comparison))
        say(0, _why_none(comparison))
        return Answer(" ".join(text for _, text in ranked))
    if lead.unpaired:
        sizes = ", ".join(str(series.batch_size) for series in lead.unpaired)
        first = lead.series[0].batch_size
        say(0, f"Not compared with {first}, because no seed is complete in both: {sizes}.")
    topic = _topic(lead)
    lost = _sizes_that_diverge(comparison)
    say(0, _headline(lead, comparison.margin, tells_stability=bool(lost)))
    say(0, _diverged(comparison))
    if topic.verdict != Verdict.TOO_FEW or lost:
        say(1, _steadiness(lost, updates))
    say(1, _rates(comparison, lead))
    say(2, _numbers(lead, topic))
    if other and (same := _same_size(other, topic)):
        say(3, _on_the_other_axis(other, same))
    say(4, _setbacks(lead, topic))
    say(5, _outlier(lead, topic))
    if topic.verdict == Verdict.TOO_FEW and lead.trend is not None:
        say(3, f"The trend over batch sizes has p {p_text(lead.trend)}.")
    question, command = _open(comparison, updates, topic)
    if not command and _lacks_images(topic):
        say(1, "To settle it takes more test images, not more seeds.")
    words = re.sub(r"--(data|weights) \S+", "", command)  # paths are no words
    room = MOST_WORDS - len(f"{question} {words}".split())
    while sum(len(text.split()) for _, text in ranked) > room:
        ranked.remove(max(ranked))
    return Answer(" ".join(text for _, text in ranked), question, command)


def _why_none(comparison: Comparison) -> str:
    """Returns why no two batch sizes are compared; empty if the others are behind."""
    if len(comparison.sizes) < 2:
        return "" if comparison.behind else ONE_SIZE
    if not any(column in comparison.table.columns for column in COLUMNS.values()):
        return "The runs have neither AUC nor test loss: nothing to compare."
    return f"No batch size has a complete seed in common with the smallest, {comparison.sizes[0]}."


def _topic(family: Family) -> Contrast:
    """Returns the comparison whose numbers the answer gives: the largest batch that differs."""
    shown = [contrast for contrast in family.contrasts if contrast.is_shown]
    material = [contrast for contrast in shown if not contrast.is_little]
    return (material or shown or family.contrasts)[-1]


def _same_size(family: Family, topic: Contrast) -> Contrast | None:
    size = topic.series.batch_size
    return next((c for c in family.contrasts if c.series.batch_size == size), None)


def _headline(family: Family, margin: float, *, tells_stability: bool) -> str:
    first, contrasts = family.series[0].batch_size, family.contrasts
    seeds = min(len(contrast.seeds) for contrast in contrasts)
    after = f"after {family.point}"
    if seeds < FEWEST_FOR_VERDICT:
        few = "One complete seed" if seeds == 1 else f"{seeds} complete seeds"
        verb = "cannot tell" if seeds == 1 else "are too few to tell"
        what = "behind" if tells_stability else "behind or less stable"
        return f"{few} per batch size {verb} whether a larger batch is {what}."
    sentences = []
    for is_better, word in ((False, "behind"), (True, "ahead of")):
        shown = [c for c in contrasts if c.is_shown and c.is_better == is_better]
        main = [c for c in shown if not c.is_little] or shown
        if main:
            where = "" if all(c.verdict == Verdict.DIFFER for c in main) else " on these images"
            verb = "is" if len(main) == 1 else "are"
            little = [str(c.series.batch_size) for c in shown if c.is_little]
            end = ", by less than the margin" if little else ""
            if main != shown:
                also = f"{'is' if len(little) == 1 else 'are'} {word.removesuffix(' of')}"
                end = f"; {_listed(little)} {also} by less than the margin"
            sentences.append(f"{_sizes(main)} {verb} {word} {first} {after}{where}{end}.")
    if sentences:
        return " ".join(sentences)
    if all(contrast.verdict == Verdict.SAME for contrast in contrasts):
        return (
            f"Batch sizes {_listed([str(each.batch_size) for each in family.series])} are the same "
            f"{after}, within {margin:g} of {NAMES[family.outcome]}."
        )
    largest = contrasts[-1]
    possible = max(abs(bound) for bound in largest.interval)
    return (
        f"No difference between batch sizes is shown {after}; up to {possible:.3f} of "
        f"{NAMES[family.outcome]} is possible for {largest.series.batch_size}."
    )


def _sizes(contrasts: Sequence[Contrast]) -> str:
    sizes = [str(contrast.series.batch_size) for contrast in contrasts]
    return f"Batch size {sizes[0]}" if len(sizes) == 1 else f"Batch sizes {_listed(sizes)}"


def _listed(words: Sequence[str]) -> str:
    """Returns words with commas, and `and` before the last.

    >>> _listed(["64", "128", "256"]), _listed(["256"])
    ('64, 128 and 256', '256')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _numbers(family: Family, topic: Contrast) -> str:
    """Returns both values of the primary outcome, and their difference with its interval."""
    size, first, name = topic.series.batch_size, topic.reference.batch_size, NAMES[topic.outcome]
    reference, own = topic.values.mean(axis=1)
    pair = (topic.series, topic.reference)
    if family.axis == "epochs":
        unit, (made, other) = "update", [family.updates_of(series) for series in pair]
    else:
        unit, (made, other) = "epoch", [1 + bisect_left(s.updates, family.at) for s in pair]
    start = f"{size} made {pluralize(made, unit)}, {first} made {other:,}; {name} was"
    low, high = topic.interval
    where = "for new images" if topic.new_images else "on these images"
    limits = f", 95 % {signed(low)} to {signed(high)} {where}" if low == low else ""
    return f"{start} {own:.3f} and {reference:.3f} ({signed(topic.mean)}{limits})."


def _on_the_other_axis(family: Family, contrast: Contrast) -> str:
    """Returns the same comparison after equal updates, or after equal epochs."""
    low, high = contrast.interval
    higher, seeds = int((contrast.differences > 0).sum()), len(contrast.seeds)
    count = higher if contrast.mean > 0 else seeds - higher
    word = "ahead" if contrast.is_better else "behind"
    limits = f", 95 % {signed(low)} to {signed(high)}" if low == low else ""
    size = contrast.series.batch_size
    what = f"{size} was {word} in {count} of {pluralize(seeds, 'seed')}"
    if contrast.verdict == Verdict.SAME:
        what = "they are the same within the margin"
    elif contrast.verdict == Verdict.NOT_SHOWN:
        what = "no difference is shown"
    difference = f"({signed(contrast.mean)}{limits})"
    return f"After {family.point} each, {what} {difference}."


def _steadiness(lost: Sequence[int], updates: Family | None) -> str:
    """Returns whether a batch size is less stable at equal updates, or that this is open.

    *lost* are the batch sizes with more diverged runs.
    """
    unstable = [str(size) for size in lost]
    if updates is None and not unstable:
        return "Whether any is less stable is open: no test came after equal updates."
    for own in updates.stability if updates else ():
        if own.is_less_stable and str(own.series.batch_size) not in unstable:
            unstable.append(str(own.series.batch_size))
    if not unstable:
        return "None is shown to be less stable."
    verb = "is" if len(unstable) == 1 else "are"
    return f"{_listed(unstable)} {verb} less stable{_why_unstable(updates)}."


def _why_unstable(updates: Family | None) -> str:
    shown = [own for own in updates.stability if own.is_less_stable] if updates else []
    if not shown:
        return ""
    worst = shown[-1]
    if worst.is_wider:
        return f" (spread over seeds {worst.ratio:.1f} times as wide)"
    return f" (test loss jumps {worst.wobble_ratio:.1f} times as much)"


def _sizes_that_diverge(comparison: Comparison) -> list[int]:
    """Returns batch sizes with more diverged runs than the smallest, by exact sign flips."""
    sizes = sorted({size for size, _, _ in comparison.table.points.values()})
    seeds = sorted({seed for _, _, seed in comparison.table.points.values()})
    lost: dict[int, set[int]] = {size: set() for size in sizes}
    for (size, _), own in comparison.diverged.items():
        lost[size] |= set(own)
    worse = []
    for size in sizes[1:]:
        signs = np.array([(seed in lost[size]) - (seed in lost[sizes[0]]) for seed in seeds], float)
        if signs.sum() > 0 and sign_flip_p(signs) <= ALPHA:
            worse.append(size)
    return worse


def _diverged(comparison: Comparison) -> str:
    """Returns how many runs of each batch size diverged, with their seeds."""
    parts = []
    for (size, lr), seeds in comparison.diverged.items():
        total = sum(p[:2] == (size, lr) for p in comparison.table.points.values())
        at = f" at lr {lr!r}" if len(comparison.table.info.lrs) > 1 else ""
        word = "seed" if len(seeds) == 1 else "seeds"
        runs = f"{len(seeds)} of {total} {'run' if total == 1 else 'runs'}"
        parts.append(f"{runs} of {size}{at} diverged ({word} {ranges(seeds)})")
    return f"{'; '.join(parts)}." if parts else ""


def _setbacks(family: Family, topic: Contrast) -> str:
    """Returns how often the test loss rose from test to test."""
    if not sum(own.steps for own in family.stability):
        return ""
    if not any(own.rises for own in family.stability):
        return "Test loss never rose."
    of_size = {own.series.batch_size: own for own in family.stability}
    pair = (topic.series.batch_size, topic.reference.batch_size)
    shares = [f"{100 * _share(of_size[size]):.0f} % of the steps of {size}" for size in pair]
    return f"Test loss rose at {shares[0]}, {shares[1]}."


def _share(stability: Stability) -> float:
    return stability.rises / stability.steps if stability.steps else 0.0


def _outlier(family: Family, topic: Contrast) -> str:
    """Returns a sentence on the seed that makes most of a batch size's spread."""
    size = topic.series.batch_size
    for own in family.stability:
        if own.outlier is not None and own.series.batch_size == size:
            value = float(topic.values[1][list(topic.seeds).index(own.outlier)])
            return (
                f"Seed {own.outlier} of {size} is an outlier ({NAMES[topic.outcome]} {value:.3f})."
            )
    return ""


def _rates(comparison: Comparison, family: Family) -> str:
    """Returns which learning rates were compared."""
    if not family.has_own_lrs:
        return ""
    rates = ", ".join(f"{s.batch_size}: {s.lr!r}" for s in family.series)
    edge = [str(series.batch_size) for series in comparison.lr_at_edge]
    at_edge = f"; {_listed(edge)} at the edge of the grid" if edge else ""
    images = "test" if comparison.table.choosing is COMPARED else "validation"
    return f"Each has its best lr, chosen on the {images} images ({rates}{at_edge})."


def _lacks_images(topic: Contrast) -> bool:
    return topic.verdict == Verdict.NOT_SHOWN and topic.needs_images


def _open(comparison: Comparison, updates: Family | None, topic: Contrast) -> tuple[str, str]:
    """Returns what is open and the command that tells; twice '' if nothing is, or none can."""
    table, last = comparison.table, topic.reference.updates[-1]
    equal: dict[str, Any] = {"updates": last, "epochs": None}
    length = {} if updates else equal  # without common tests, stability stays open
    enough = f"0-{max(len(table.info.seeds), ENOUGH_SEEDS) - 1}"
    if topic.verdict == Verdict.TOO_FEW:
        if comparison.diverged and len(table.info.seeds) >= ENOUGH_SEEDS:
            rates = tuple(float(f"{topic.series.lr * factor:.6g}") for factor in (0.25, 0.5, 1))
            return "Does a smaller lr hold?", submit_command(table, lr=rates)
        return SETTLE, submit_command(table, seeds=enough, **length)
    if topic.verdict == Verdict.NOT_SHOWN:
        needed = topic.num_seeds_needed
        if needed is None or topic.needs_images or needed <= len(topic.seeds):
            return "", ""
        return SETTLE, submit_command(table, seeds=f"0-{needed - 1}", **length)
    if topic.verdict == Verdict.SAME or topic.is_better:
        if updates:
            return "", ""
        return "Is any less stable?", submit_command(table, seeds=enough, **equal)
    later = _same_size(updates, topic) if updates else None
    is_behind = later is not None and later.is_shown and not later.is_better
    if not is_behind:
        # As many updates as the smallest has made; it is in the sweep again, to be compared with.
        pair = (topic.reference.batch_size, topic.series.batch_size)
        question = f"Does {topic.series.batch_size} catch up?"
        return question, submit_command(table, batch_sizes=pair, seeds=enough, **equal)
    if len(table.info.lrs) > 1:
        return "", ""
    rates = tuple(float(f"{topic.series.lr * factor:.6g}") for factor in (1, 2, 4, 8))
    return "Is it the learning rate?", submit_command(table, seeds=enough, lr=rates)


def submit_command(table: SweepTable, **changes: Any) -> str:
    """Returns the command for a sweep like this with other values of some fields of TrainConfig.

    Options at their defaults are left out. Paths are relative to the current folder if they can be.
    """
    info, recipe = table.info, filled_recipe(table.info.recipe)
    axes = {"batch_size": info.batch_sizes, "lr": info.lrs, "seed": ranges(info.seeds)}
    options = options_of(TrainConfig)
    words = ["skinjob submit"]
    for name, option in options.items():
        default = option.command_default
        if option.default_all is not None:
            default = option.default_all if recipe["train"] == "all" else option.default
            default = (default,) if option.axis else default
        value = changes.get(option.key, changes.get(name, axes.get(name, recipe.get(name))))
        if name in ("data", "weights"):
            value = short_path(str(value or ""))
            default = option.sample
        is_default = value in (None, default, "", ()) or (name == "seed" and value == "0")
        if not is_default and name != "device":
            words.append(option.usage(tuple(value) if isinstance(value, list) else value))
    return " ".join(words)


def short_path(path: str) -> str:
    """Returns a path relative to the current folder, if it is below it."""
    with suppress(OSError, ValueError):  # the current folder may be gone, or not above the path
        return str(Path(path).relative_to(Path.cwd()))
    return path


def ranges(numbers: Sequence[int]) -> str:
    """Returns numbers in the format of --seeds.

    >>> ranges([0, 1, 2, 3, 7, 8])
    '0-3,7,8'
    """
    # Consecutive numbers differ from their positions by the same amount.
    rows = [
        [number for _, number in row]
        for _, row in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    parts = [[f"{row[0]}-{row[-1]}"] if len(row) > 2 else map(str, row) for row in rows]
    return ",".join(chain.from_iterable(parts))
