"""Files are replaced in one step, seen from a reader's side."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from skinjob.config import TrainConfig
from skinjob.data.images import ImageFile, ImageSet, read_index, write_index
from skinjob.files import csv_text, sorted_safetensors, write_json
from skinjob.sweeps.layout import METRICS, Run
from skinjob.train.loop import Epoch
from skinjob.train.outputs import metrics_row, write_predictions


def test_a_reader_of_a_file_that_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    """Whoever has opened a state reads what it said then, whole, whatever is written meanwhile."""
    file = tmp_path / "state.json"
    write_json(file, {"state": "queued", "error": "x" * 100_000})
    with file.open(encoding="utf-8") as reader:
        write_json(file, {"state": "done"})
        assert json.load(reader)["state"] == "queued"
    assert json.loads(file.read_text(encoding="utf-8")) == {"state": "done"}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text", ["=1+1", "=cmd|' /C calc'!A0", "+cmd", "-cmd", "@sum(a1)", "\t=1", "\r=1", "-1+1", "-"]
)
def test_a_text_in_a_csv_file_is_no_formula(text: str) -> None:
    """A spreadsheet that opens a CSV file shows a class or sweep by its name, and runs nothing."""
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["nevus", "", "-1", "+0.5", "-.5e-3", "a=b", "'quoted'", "3-4"])
def test_a_text_in_a_csv_file_that_is_no_formula_stays(text: str) -> None:
    """What reads the CSV file finds the names of ordinary classes as they are, numbers too."""
    assert csv_text(text) == text


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
    write_predictions(run, images.split("test"), torch.eye(3), classes)
    epoch = Epoch(
        number=1, row=dict.fromkeys(METRICS[4:], 1), num_train=1, test_logits=torch.eye(3)
    )
    config = TrainConfig(data="d", weights="w", batch_size=4)
    run.write_metrics([metrics_row(run, config, epoch)])
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


def test_equal_tensors_and_metadata_give_an_equal_file() -> None:
    """Two people who train or fetch the same can compare their files' digests."""
    tensors = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}
    metadata = {f"key {number}": "text" for number in range(20)}  # the library shuffles them
    contents = {sorted_safetensors(save(tensors, metadata)) for _ in range(5)}
    assert len(contents) == 1
    kept = load(contents.pop())
    assert all(np.array_equal(kept[name], tensors[name]) for name in tensors)
