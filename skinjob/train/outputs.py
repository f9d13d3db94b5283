"""What a run writes: rows of metrics.csv, predictions and the trained layers."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from skinjob.config import TrainConfig
from skinjob.data.images import ImageFile
from skinjob.files import csv_text, replacing, sorted_safetensors
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS, SweepInfo, utc_now
from skinjob.weights.backbones import Backbone


def metrics_row(run: Run, config: TrainConfig, row: Mapping[str, Any]) -> list[str]:
    """Returns a row of metrics.csv, in the order of METRICS; NaN or no value is an empty cell."""
    formats = {"lr": "g", "seconds": ".3f", "images_per_s": ".1f", "epoch": "d", "updates": "d"}
    cells = {
        column: "" if math.isnan(value) else format(value, formats.get(column, ".6f"))
        for column, value in row.items()
    }
    cells |= {
        "sweep": csv_text(run.sweep.name),
        "run": run.name,
        "batch_size": str(config.batch_size),
        "seed": str(config.seed),
        "time_utc": utc_now(),
    }
    return [cells.get(column, "") for column in METRICS]


def write_predictions(
    file: Path, files: Sequence[ImageFile], logits: Tensor, classes: Sequence[str]
) -> None:
    """Writes predictions.csv: the probabilities of a split's images after the last epoch.

    *logits* (num_images, num_classes), in the order of *files*.
    """
    probabilities = logits.softmax(dim=1)  # (num_images, num_classes)
    with (
        replacing(file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
    ):
        writer = csv.writer(rows)
        writer.writerow(["image", "label", "predicted", *(f"p_{name}" for name in classes)])
        for image, p in zip(files, probabilities.tolist(), strict=True):
            names = csv_text(classes[image.label]), csv_text(classes[p.index(max(p))])
            writer.writerow([image.path, *names, *(f"{value:.6f}" for value in p)])


def write_trained(run: Run, state: Mapping[str, Any], backbone: Backbone, info: SweepInfo) -> None:
    """Writes head.safetensors or model.safetensors; tensors are named as in torchvision."""
    metadata = {
        "architecture": backbone.name,
        "classes": ",".join(info.images.classes),
        "backbone_sha256": info.weights.sha256,
        "run": f"{run.sweep.name}/{run.name}",
    }
    part, prefix = ("head", f"{backbone.head}.") if "head" in state else ("model", "")
    tensors = {f"{prefix}{name}": t.cpu().contiguous() for name, t in state[part].items()}
    with replacing(run.trained_file(part)) as partial:
        partial.write_bytes(sorted_safetensors(save(tensors, metadata)))
