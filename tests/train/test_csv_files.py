"""What a job writes for people to open in a spreadsheet."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import torch

from skinjob.config import TrainConfig
from skinjob.data.images import ImageFile, ImageSet, read_index, write_index
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS
from skinjob.train.outputs import metrics_row, write_predictions


def test_no_csv_file_of_a_sweep_holds_a_formula(tmp_path: Path) -> None:
    """Class folders may have any name; the list of images is read back as it was, old ones too."""
    classes = ("'=cmd|x", "-1", "=cmd|x")
    images = ImageSet(
        tmp_path,
        classes,
        tuple(
            ImageFile(f"{split}/{name}/=1.jpg", split, label, 1, "0" * 64)
            for split in ("test", "train")
            for label, name in enumerate(classes)
        ),
    )
    run = Run(tmp_path / "=1+1" / "bs0004-lr0.1-seed0")
    write_index(images, run.sweep.images_file)
    assert read_index(run.sweep.images_file, tmp_path, classes) == images
    write_predictions(run.predictions_file, images.split("test"), torch.eye(3), classes)
    config = TrainConfig(data="d", weights="w", batch_size=4)
    run.write_metrics([metrics_row(run, config, dict.fromkeys(list(METRICS)[4:-1], 1))])
    for file in (run.sweep.images_file, run.predictions_file, run.metrics_file):
        with file.open(newline="") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        assert {cell for cell in cells if cell.startswith(("=", "-"))} <= {"-1"}
        assert any(cell.startswith("'=") for cell in cells)

    text = run.sweep.images_file.read_text()
    old = re.sub(r"(/=cmd\|x/=1.jpg,\w+,)'", r"\1", text)  # as it was without the apostrophe
    assert old != text
    run.sweep.images_file.write_text(old)
    assert read_index(run.sweep.images_file, tmp_path, classes) == images
