"""How a sweep was made: its facts, the commands that repeat it, and a paragraph for a paper."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skinjob.report.answer import ranges, submit_command
from skinjob.report.comparison import NAMES, VAL_COLUMNS, Comparison
from skinjob.report.statistics import MOST_EXACT_SEEDS
from skinjob.report.tables import SweepTable
from skinjob.sweeps.records import filled_recipe
from skinjob.words import counts_text, pluralize

CITATION = """\
@software{{skinjob,
  title = {{skinjob: batch sizes compared on an air-gapped cluster}},
  version = {{{version}}},
}}"""


def facts(table: SweepTable) -> dict[str, str]:
    """Returns the facts of a sweep by name; the page does not show empty values."""
    info = table.info
    weights, images = info.weights, info.images
    return {
        "sweep": table.sweep.name,
        "submitted": info.created_utc,
        "recipe": _pairs(info.recipe, leave_out=("data", "weights")),
        "batch sizes": ", ".join(map(str, info.batch_sizes)),
        "lr": ", ".join(map(str, info.lrs)),
        "seeds": ranges(info.seeds),
        "backbone": weights.architecture,
        "weights": weights.source or weights.path,
        "weights SHA-256": weights.sha256,
        "images": images.root,
        "images' fingerprint": images.fingerprint,
        **{f"images, {split}": counts_text(counts) for split, counts in table.counts.items()},
        "images skipped": str(len(images.skipped) or ""),
        "device": ", ".join(_devices(table)),
        "versions": _pairs(info.versions),
    }


def commands(table: SweepTable) -> list[str]:
    """Returns the commands that repeat a sweep, in the folder of the project."""
    check = []
    if table.weights_kind == "fetched" and table.info.weights.source.startswith("https:"):
        check = ["skinjob fetch-weights"]
    submit = submit_command(table)
    name = shlex.quote(table.sweep.name)
    return [*check, f"{submit} --name {name}", f"skinjob report {name}"]


def training(table: SweepTable) -> str:
    """Returns sentences about the network, its training and its images."""
    info = table.info
    recipe = filled_recipe(info.recipe)
    is_head = recipe["train"] == "head"
    network = info.weights.architecture or "network"
    source = info.weights.source or info.weights.path or "an unnamed file"
    layers = (
        "Its layers were frozen, in evaluation mode; a new last layer was trained with Adadelta"
        if is_head
        else "All its layers, with a new last layer, were trained with AdamW"
    )
    updates = f"{recipe['updates'] or 0:,} updates of the weights"
    length = updates if info.epochs is None else pluralize(info.epochs, "epoch")
    rates = ", ".join(map(repr, info.lrs))
    return (
        f"A {network} with weights from {source} was used. {layers} (learning rate {rates}, "
        f"{recipe['schedule']}) on the cross-entropy for {length}. "
        "Training images were resized, cropped at random and flipped at random, the same way in "
        "all runs; test images were resized and cropped in the middle."
    )


def methods(comparison: Comparison) -> str:
    """Returns a paragraph on how the batch sizes were trained and compared.

    It says nothing of what was not done, because of few seeds, batch sizes or predictions.
    """
    table = comparison.table
    images = "; ".join(
        f"{split} {sum(counts.values())} ({counts_text(counts)})"
        for split, counts in table.counts.items()
    )
    return " ".join(
        [
            training(table),
            *([f"Images: {images}."] if images else []),
            _runs(table),
            *_compared(comparison),
            *_tested(comparison),
        ]
    )


def _runs(table: SweepTable) -> str:
    info = table.info
    sizes = ", ".join(map(str, info.batch_sizes))
    is_single = len(info.batch_sizes) == 1
    trained = f"Batch size {sizes} was" if is_single else f"Batch sizes {sizes} were each"
    shared = (
        ""
        if is_single and len(info.lrs) == 1
        else "; runs of a seed share the first values of the last layer and the order of the images"
    )
    return f"{trained} trained with {pluralize(len(info.seeds), 'seed')}{shared}."


def _compared(comparison: Comparison) -> Iterator[str]:
    """Yields sentences on what was compared, and by which intervals."""
    families = [family for family in comparison.families if family.is_primary]
    if not families:
        return
    table, name = comparison.table, NAMES[comparison.primary]
    declared = table.info.recipe.get("primary") or "auc"
    yield (
        f"The primary outcome was {name}, and {comparison.margin:g} the largest difference that "
        "does not matter; both were fixed at submission."
        if declared == comparison.primary
        else f"The outcome was {name}: {NAMES[declared]}, the primary outcome, is not known."
    )
    points = " and ".join(dict.fromkeys(f"after {family.point}" for family in families))
    yield f"Each batch size was compared with the smallest, seed by seed, {points}."
    if any(family.has_own_lrs for family in families):
        split = "validation" if VAL_COLUMNS[comparison.primary] in table.columns else "test"
        yield (
            "They were compared at each learning rate, and each at its own best one, which was "
            f"chosen by {name} on the {split} images."
        )
    contrasts = [contrast for family in families for contrast in family.contrasts]
    if any(len(contrast.seeds) > 1 for contrast in contrasts):
        yield "Intervals (95 %) for these test images are paired t intervals over seeds."
    if any(contrast.new_images for contrast in contrasts):
        kind = "DeLong's covariance" if comparison.primary == "auc" else "covariance over images"
        yield (
            f"Intervals (95 %) for {comparison.scope} follow "
            f"Obuchowski and Rockette with the degrees of freedom of Hillis and {kind}."
        )


def _tested(comparison: Comparison) -> Iterator[str]:
    """Yields sentences on the tests that were made."""
    families = [family for family in comparison.families if family.is_primary]
    if any(family.trend is not None for family in families):
        yield "Pairs were tested only if Page's test showed a trend over the batch sizes."
    contrasts = [contrast for family in families for contrast in family.contrasts]
    if any(contrast.p_here is not None for contrast in contrasts):
        is_new = any(contrast.p_new is not None for contrast in contrasts)
        new = ", or the t test for new images" if is_new else ""
        yield (
            f"P values are from sign flips over seeds (exact up to {MOST_EXACT_SEEDS} seeds)"
            f"{new}, adjusted by Holm's method."
        )


def citation(table: SweepTable) -> str:
    """Returns a BibTeX entry for the version that made the sweep."""
    return CITATION.format(version=table.info.versions.get("skinjob", "unknown"))


def _devices(table: SweepTable) -> list[str]:
    """Returns each device and precision that a run of the sweep used."""
    states = table.states.values()
    return sorted({f"{state.device} ({state.precision})" for state in states if state.device})


def _pairs(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if name not in leave_out
    )
