"""How a sweep was made: its facts, the commands that repeat it, and a paragraph for a paper."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from skinjob.report.answer import ranges, submit_command
from skinjob.report.comparison import NAMES, Comparison
from skinjob.report.tables import SweepTable
from skinjob.sweeps.records import filled_recipe
from skinjob.words import pluralize

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
        **{
            f"images, {split}": ", ".join(f"{count} {name}" for name, count in counts.items())
            for split, counts in table.counts.items()
        },
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
    """Returns a paragraph on how the batch sizes were trained and compared."""
    table = comparison.table
    info = table.info
    sizes = ", ".join(map(str, info.batch_sizes))
    counts = "; ".join(
        f"{split} {sum(own.values())} ({', '.join(f'{num} {name}' for name, num in own.items())})"
        for split, own in table.counts.items()
    )
    images = f" Images: {counts}." if counts else ""
    covariance = "DeLong's covariance" if comparison.primary == "auc" else "covariance over images"
    return (
        f"{training(table)}{images} Batch sizes {sizes} were each trained with "
        f"{pluralize(len(info.seeds), 'seed')}; runs of a seed share the first values of the last "
        f"layer and the order of the images. {NAMES[comparison.primary]} was the primary outcome "
        f"and {comparison.margin:g} the largest difference that does not matter; both were "
        "fixed at submission. Each batch size was compared with the smallest, seed by seed, "
        "after equal epochs and after equal updates. Intervals (95 %) for these test images are "
        "paired t intervals over seeds; those for new images and seeds follow Obuchowski and "
        f"Rockette with the degrees of freedom of Hillis and {covariance}. With three or more "
        "batch sizes, pairs were tested only if Page's test showed a trend; P values are from "
        "exact sign flips over seeds, or the t test for new images, adjusted by Holm's method."
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
