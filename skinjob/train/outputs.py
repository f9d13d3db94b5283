"""What a run leaves: rows of metrics, the last epoch's predictions, and what was trained."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from skinjob.config import TrainConfig
from skinjob.data.images import ImageFile
from skinjob.files import csv_text, replacing, sorted_safetensors
from skinjob.sweeps.layout import METRICS, Run, utc_now
from skinjob.train.loop import Epoch


def metrics_row(run: Run, config: TrainConfig, epoch: Epoch) -> list[str]:
    """Returns a row of metrics.csv, in the order of METRICS; what has no value is left empty."""
    measured = {
        column: value if isinstance(value, int) else "" if math.isnan(value) else f"{value:.6f}"
        for column, value in epoch.row.items()
    }
    values = {
        "sweep": csv_text(run.sweep.name),
        "run": run.name,
        "batch_size": config.batch_size,
        "seed": config.seed,
        **measured,
        "lr": f"{epoch.row['lr']:g}",
        "seconds": f"{epoch.row['seconds']:.3f}",
        "images_per_s": f"{epoch.num_train / epoch.row['seconds']:.1f}",
        "time_utc": utc_now(),
    }
    return [str(values[column]) for column in METRICS]


def write_predictions(
    run: Run, files: Sequence[ImageFile], test_logits: Tensor, classes: Sequence[str]
) -> None:
    """Writes predictions.csv: what the last epoch's network says of every test image.

    *test_logits* (num_test, num_classes), in the order of *files*.
    """
    probabilities = test_logits.softmax(dim=1)  # (num_test, num_classes)
    with (
        replacing(run.predictions_file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
    ):
        writer = csv.writer(rows)
        writer.writerow(["image", "label", "predicted", *(f"p_{name}" for name in classes)])
        for file, p in zip(files, probabilities.tolist(), strict=True):
            names = csv_text(classes[file.label]), csv_text(classes[p.index(max(p))])
            writer.writerow([file.path, *names, *(f"{value:.6f}" for value in p)])


def write_trained(run: Run, trained: nn.Module, info: dict[str, Any]) -> None:
    """Writes head.safetensors or model.safetensors, with torchvision's names of ResNet18."""
    is_head = isinstance(trained, nn.Linear)
    metadata = {
        "architecture": "resnet18",
        "classes": ",".join(info["images"]["classes"]),
        "backbone_sha256": info["weights"]["sha256"],
        "run": f"{run.sweep.name}/{run.name}",
    }
    prefix = "fc." if is_head else ""
    tensors = {f"{prefix}{name}": t.cpu().contiguous() for name, t in trained.state_dict().items()}
    with replacing(run.trained_file("head" if is_head else "model")) as partial:
        partial.write_bytes(sorted_safetensors(save(tensors, metadata)))
