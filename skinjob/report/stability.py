"""How stable batch sizes are: spread over seeds, jumps and rises of the test loss, divergence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skinjob.report.statistics import (
    NO_INTERVAL,
    Floats,
    Interval,
    geometric_ratio,
    sd_ratio,
    setbacks,
    wobble,
)
from skinjob.report.tables import Series, SweepTable
from skinjob.sweeps.records import Status

FEWEST_FOR_OUTLIER = 8
FEWEST_POINTS = 6  # for a wobble
NO_LOSS = re.compile(r"\bloss is (nan|-?inf)")  # in the reason of a run that diverged


@dataclass(frozen=True)
class Stability:
    """How stable a batch size is, compared with the smallest, at the same epochs or updates."""

    series: Series
    sd: float
    """Of the primary outcome over seeds."""
    ratio: float
    """Its sd divided by that of the smallest batch size."""
    limits: Interval
    without_one: Interval
    """The lowest and highest ratio when any seed is left out."""
    outlier: int | None
    """A seed without which the sd is less than half."""
    wobble: float
    wobble_ratio: float
    wobble_limits: Interval
    rises: int
    """Steps at which the test loss rose, of `steps`."""
    steps: int
    largest_rise: float
    spacing: int
    """Updates from one test to the next, in the jumps and rises."""

    @property
    def is_wider(self) -> bool:
        return self.limits.low > 1

    @property
    def is_less_stable(self) -> bool:
        return self.is_wider or self.wobble_limits.low > 1


def stabilities(
    axis: str, at: int, all_series: Sequence[Series], finite: Mapping[int, Mapping[int, float]]
) -> list[Stability]:
    """Returns the stability of each batch size, the smallest first."""
    spacings = {s.batch_size: _spacing(s, axis, all_series) for s in all_series}
    curves = {s.batch_size: _losses(s, axis, at, spacings[s.batch_size]) for s in all_series}
    first, rows = all_series[0], []
    for series in all_series:
        own, other = finite[series.batch_size], finite[first.batch_size]
        seeds = sorted(own.keys() & other.keys())
        a, b = (np.array([values[seed] for seed in seeds]) for values in (other, own))
        ratio, limits = sd_ratio(a, b) if series is not first else (math.nan, NO_INTERVAL)
        left_out = [
            sd_ratio(np.delete(a, n), np.delete(b, n))[0] if len(seeds) > 3 else math.nan
            for n in range(len(seeds) if series is not first else 0)
        ]
        sd = float(b.std(ddof=1)) if len(b) > 1 else math.nan
        losses, reference = curves[series.batch_size], curves[first.batch_size]
        common = [seed for seed in series.seeds if seed in first.seeds]
        jumps, jump_ratio, jump_limits = math.nan, math.nan, NO_INTERVAL
        if losses.shape[1] >= FEWEST_POINTS and np.isfinite(losses).all():
            jumps = float(wobble(losses).mean())
            if series is not first and np.isfinite(reference).all():
                pair = (
                    wobble(lines)[[list(s.seeds).index(seed) for seed in common]]
                    for s, lines in ((first, reference), (series, losses))
                )
                jump_ratio, jump_limits = geometric_ratio(*pair)
        rises, steps, largest = setbacks(losses)
        rows.append(
            Stability(
                series=series,
                sd=sd,
                ratio=ratio,
                limits=limits,
                without_one=Interval(min(left_out), max(left_out)) if left_out else NO_INTERVAL,
                outlier=_outlier(seeds, b),
                wobble=jumps,
                wobble_ratio=jump_ratio,
                wobble_limits=jump_limits,
                rises=rises,
                steps=steps,
                largest_rise=largest,
                spacing=spacings[series.batch_size],
            )
        )
    return rows


def _spacing(series: Series, axis: str, all_series: Sequence[Series]) -> int:
    """Returns the updates of an epoch, or those from one common test of all series to the next."""
    if axis == "epochs":
        return series.updates[0]
    common = set.intersection(*(set(each.points) for each in all_series))
    return min(update for update in common if update)  # a damaged file may have a 0


def _losses(series: Series, axis: str, at: int, spacing: int) -> Floats:
    """Returns the test losses (runs, points) up to a point, at tests equally many updates apart."""
    if "test_loss" not in series.table.columns:
        return np.zeros((series.num_counted, 0))
    if axis == "epochs":
        return series.by_run("test_loss")[:, :at]
    chosen = [update <= at and update % spacing == 0 for update in series.points]
    return series.at_points("test_loss")[:, chosen]


def _outlier(seeds: Sequence[int], values: Floats) -> int | None:
    """Returns the seed without which the standard deviation is less than half; None if none."""
    if len(seeds) < FEWEST_FOR_OUTLIER:
        return None
    far = int(abs(values - np.median(values)).argmax())
    rest = np.delete(values, far)
    sd = values.std(ddof=1)
    return seeds[far] if sd > 1e-6 and rest.std(ddof=1) < sd / 2 else None  # files have six digits


def diverged(
    table: SweepTable, all_series: Sequence[Series]
) -> dict[tuple[int, float], tuple[int, ...]]:
    """Returns the seeds whose loss was not a number, by batch size and lr."""
    names = {
        name
        for name, state in table.states.items()
        if state.status == Status.FAILED and NO_LOSS.search(state.reason or "")
    }
    for series in all_series if "test_loss" in table.columns else ():
        is_lost = ~np.isfinite(series.by_run("test_loss")[:, -1])
        names |= {series.run_of_seed[s] for s in np.array(series.seeds)[is_lost].tolist()}
    seeds: dict[tuple[int, float], tuple[int, ...]] = {}
    for name in sorted(names & table.points.keys(), key=lambda name: table.points[name]):
        batch_size, lr, seed = table.points[name]
        seeds[batch_size, lr] = (*seeds.get((batch_size, lr), ()), seed)
    return seeds
