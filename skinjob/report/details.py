"""The page's tables of what the answer rests on, as columns and rows of text."""

from __future__ import annotations

import math

from skinjob.report.comparison import NAMES, Comparison, Contrast, Family, Verdict
from skinjob.report.measures import COMPARED, number, percent, signed
from skinjob.report.stability import Stability
from skinjob.report.statistics import Interval, wilson_interval

Table = tuple[list[str], list[list[str]]]
DIGITS = 3


def comparison_table(comparison: Comparison) -> Table:
    """Returns a row for each batch size at equal epochs and at equal updates."""
    primary = [family for family in comparison.families if family.is_primary]
    other_name = "log-loss" if comparison.primary == "auc" else "auc"
    if not primary:
        return [], []
    first = primary[0].series[0].batch_size
    name, other = NAMES[comparison.primary], NAMES[other_name]
    columns = [
        "after",
        *_lr_cell(comparison, "lr"),
        "batch size",
        "updates",
        name,
        f"minus {first}\n(95 %, {comparison.scope})",
        f"minus {first}\n(95 %, these images)",
        "p, adjusted\n(new / these)",
        "seeds",
        "verdict",
        other,
        f"minus {first}\n(95 %, these images)",
    ]
    rows = []
    for family in primary:
        twin = next((f for f in comparison.families if _is_twin(f, family, other_name)), None)
        for place, series in enumerate(family.series):
            contrast = family.contrasts[place - 1] if place else None
            second = twin.contrasts[place - 1] if twin and place else None
            rows.append(
                [
                    comparison.point(family),
                    *_lr_cell(comparison, repr(series.lr)),
                    str(series.batch_size),
                    f"{family.updates_of(series):,}",
                    _mean(family, series.batch_size),
                    *_against_first(contrast, len(family.values[series.batch_size])),
                    _mean(twin, series.batch_size) if twin else "-",
                    _difference(second, second.same_images) if second else "-",
                ]
            )
    return columns, rows


def _against_first(contrast: Contrast | None, num_seeds: int) -> list[str]:
    """Returns the cells from the differences to the verdict."""
    if contrast is None:
        return ["-", "-", "-", str(num_seeds), "-"]
    new = contrast.new_images.interval() if contrast.new_images else None
    return [
        _difference(contrast, new),
        _difference(contrast, contrast.same_images),
        " / ".join(map(p_text, (contrast.p_new, contrast.p_here))),
        str(len(contrast.seeds)),
        verdict_text(contrast),
    ]


def _is_twin(family: Family, other: Family, outcome: str) -> bool:
    """Returns True for the family of another outcome at the same point."""
    mine, theirs = ((f.axis, f.at, f.has_own_lrs, *map(id, f.series)) for f in (family, other))
    return mine == theirs and family.outcome == outcome


def _lr_cell(comparison: Comparison, text: str) -> list[str]:
    return [text] if len(comparison.table.info.lrs) > 1 else []


def _mean(family: Family, batch_size: int) -> str:
    values = family.values[batch_size]
    return number(float(values.mean()) if len(values) else math.nan, DIGITS)


def _difference(contrast: Contrast, interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return "-" if interval is None else signed(contrast.mean)
    low, high = interval
    return f"{signed(contrast.mean)} ({signed(low)} to {signed(high)})"


def p_text(p: float | None) -> str:
    """Returns a p value as text.

    >>> p_text(0.0123), p_text(1e-9), p_text(None)
    ('0.012', '<0.001', '-')
    """
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.2g}"


def verdict_text(contrast: Contrast) -> str:
    """Returns a verdict, with what would settle it if it is open."""
    if contrast.verdict is None:
        return "-"
    text = str(contrast.verdict.value)
    if contrast.is_shown:
        return f"{text}, by less than the margin" if contrast.is_little else text
    if contrast.verdict.name == "SAME":
        return f"{text} ({contrast.margin:g})"
    if contrast.verdict.name == "NOT_SHOWN":
        possible = max(abs(bound) for bound in contrast.interval)
        needed = contrast.num_seeds_needed
        settle = (
            "more test images, not more seeds"
            if contrast.needs_images
            else f"{'over 1,000' if needed is None else f'about {needed}'} seeds"
        )
        return f"{text}; up to {possible:.{DIGITS}f} is possible; it takes {settle}"
    return text


def tests_made(comparison: Comparison) -> list[str]:
    """Returns a sentence for each family of tests: the trend, and how many pairs were tested."""
    lines = []
    for family in comparison.families:
        if family.is_primary:
            trend = f"trend p {p_text(family.trend)}; " if family.trend is not None else ""
            lines.append(
                f"{NAMES[family.outcome]} after {comparison.point(family)}: "
                f"{trend}{_pairs_tested(family)}."
            )
    return lines


def _pairs_tested(family: Family) -> str:
    """Returns how many tests of pairs were made, or why none."""
    if family.num_tests:
        noun = "test" if family.num_tests == 1 else "tests"
        return f"{family.num_tests} {noun} of pairs, adjusted by Holm"
    if all(contrast.verdict == Verdict.TOO_FEW for contrast in family.contrasts):
        return "no test of pairs: fewer than five seeds"
    if family.trend is None:
        return "no test of pairs: fewer than three seeds are complete in all batch sizes"
    return "no test of pairs: no trend is shown"


def stability_table(comparison: Comparison) -> Table:
    """Returns a row for each batch size at equal epochs and at equal updates."""
    primary = [family for family in comparison.families if family.is_primary]
    if not primary:
        return [], []
    first, name = primary[0].series[0].batch_size, NAMES[comparison.primary]
    columns = [
        "after",
        *_lr_cell(comparison, "lr"),
        "batch size",
        f"sd of {name}\nover seeds",
        f"sd by that of {first}\n(95 %)",
        "without any\none seed",
        "outlier",
        "updates from\ntest to test",
        "jumps of\ntest loss",
        f"by those of {first}\n(95 %)",
        "test loss rose",
        "largest rise",
        "diverged or below\nmajority (95 %)",
    ]
    rows = [
        [
            comparison.point(family),
            *_lr_cell(comparison, repr(own.series.lr)),
            str(own.series.batch_size),
            number(own.sd, DIGITS),
            _ratio(own.ratio, own.limits),
            _ratio(None, own.without_one),
            "-" if own.outlier is None else f"seed {own.outlier}",
            f"{own.spacing:,}",
            number(own.wobble, 4),
            _ratio(own.wobble_ratio, own.wobble_limits),
            f"{own.rises} of {own.steps} steps" if own.steps else "-",
            number(own.largest_rise, DIGITS) if own.steps else "-",
            _failures(comparison, own),
        ]
        for family in primary
        for own in family.stability
    ]
    return columns, rows


def _ratio(ratio: float | None, limits: Interval) -> str:
    if math.isnan(limits.low):
        return "-"
    between = f"{limits.low:.2f} to {limits.high:.2f}"
    return between if ratio is None else f"{ratio:.2f} ({between})"


def _failures(comparison: Comparison, own: Stability) -> str:
    """Returns how many runs diverged or ended below the majority class, of those that ended."""
    series = own.series
    counts = comparison.table.counts.get(COMPARED.split, {})
    majority = max(counts.values(), default=0) / max(1, sum(counts.values()))
    lost = comparison.diverged.get((series.batch_size, series.lr), ())
    below = {
        seed
        for seed, value in zip(series.seeds, series.final(COMPARED), strict=True)
        if value < majority
    }
    num, total = len(below | set(lost)), len(set(series.seeds) | set(lost))
    low, high = wilson_interval(num / total, total)
    return f"{num} of {total} ({percent(low, 0)}-{percent(high, 0)} %)"
