"""`skinjob verify` names each file that is not as it was written, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, skinjob
from safetensors.numpy import save_file
from trees import make_sweep, make_tree
from untrained import write_untrained

from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    """A folder with weights, images, and a sweep whose first run is done."""
    weights = write_untrained(tmp_path / "weights/resnet18.safetensors").path
    sweep = make_sweep(make_tree(tmp_path / "skin"), weights, tmp_path / "runs")
    sweep.folder.rename(tmp_path / "runs/monday")
    finish(Sweep(tmp_path / "runs/monday").runs()[0])
    return tmp_path


def finish(run: Run) -> None:
    """Writes what a job of two epochs leaves."""
    run.write_metrics([[str(number)] * len(METRICS) for number in (1, 2)])
    run.predictions_file.write_text("path,label,benign,malignant\na.jpg,0,0.9,0.1\n")
    save_file({"fc.bias": np.zeros(2, np.float32)}, run.trained_file("head"))
    run.checkpoint_files[0].write_bytes(b"state" + hashlib.sha256(b"state").digest())
    run.update_state(status="done", epoch=2)


def faults(*words: str, cwd: Path) -> list[str]:
    """Returns the lines of `skinjob verify` about faults, after a check of its error."""
    done = skinjob("verify", *words, cwd=cwd)
    if done.returncode == 0:
        assert done.stderr == ""
        return []
    lines = [
        line
        for line in done.stdout.splitlines()
        if ": " in line and not re.search(r": \d+ faults? in \d", line)
    ]
    number = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}: {lines[0]}"
    assert refusal(done).startswith(number)
    return lines


def test_sound_files_have_no_faults(place: Path) -> None:
    """Untouched weights, sweeps with images and runs have no fault."""
    done = skinjob("verify", "weights", "runs/monday", cwd=place, code=0)
    assert done.stdout == (
        "weights: no fault in 1 file\nruns/monday: no fault in 24 images and 2 runs\n"
    )
    assert faults(cwd=place) == []
    assert faults(str(Sweep(place / "runs/monday").runs()[0].folder), cwd=place) == []


def test_weights_are_compared_with_their_list(place: Path) -> None:
    """A byte that changed on the way is a fault; so is a file that was not copied."""
    weights = place / "weights/resnet18.safetensors"
    with weights.open("r+b") as content:
        content.seek(100_000)
        content.write(b"\x00\x01\x02\x03")
    assert faults(cwd=place) == ["weights/resnet18.safetensors: not as packed"]
    weights.unlink()
    assert faults(cwd=place) == ["weights/resnet18.safetensors: is missing"]


def test_images_are_compared_with_the_sweeps_list(place: Path) -> None:
    """Each image that is missing or changed is a line, wherever the images are now."""
    (place / "skin/train/benign/1.jpg").unlink()
    (place / "skin/test/malignant/0.jpg").write_bytes(b"another")
    lines = [
        f"{place}/skin/test/malignant/0.jpg: not as packed",
        f"{place}/skin/train/benign/1.jpg: is missing",
    ]
    assert sorted(faults("runs/monday", cwd=place)) == lines
    shutil.move(place / "skin", place / "moved")
    moved = [line.replace(f"{place}/skin", "moved") for line in lines]
    assert sorted(faults("runs/monday", "--data", "moved", cwd=place)) == moved
    (line,) = faults("runs/monday", cwd=place)
    assert line == f"{place}/skin: no such path (--data names another)"


def test_a_runs_files_are_compared_with_its_state(place: Path) -> None:
    """Files of a run that are missing, cut off or behind its state are named."""
    run = Sweep(place / "runs/monday").runs()[0]
    where = "runs/monday/" + run.name
    run.write_metrics([["1"] * len(METRICS)])
    run.predictions_file.unlink()
    head = run.trained_file("head")
    head.write_bytes(head.read_bytes()[:-1])
    run.checkpoint_files[0].write_bytes(b"half")
    lines = faults("runs/monday", cwd=place)
    assert [line.partition(": ")[0] for line in lines] == [
        f"{where}/{name}"
        for name in ("checkpoint.pt", "metrics.csv", "predictions.csv", "head.safetensors")
    ]
    run.config_file.write_text("{")
    assert len(faults(where, cwd=place)) == 1


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("val_fraction", 0.25, "predictions-val.csv"), ("updates", 12, "tests.csv")],
)
def test_a_table_that_an_option_asks_for_is_looked_for(
    place: Path, option: str, value: float, name: str
) -> None:
    """A run that is done has every table of its options."""
    run = Sweep(place / "runs/monday").runs()[0]
    config = json.loads(run.config_file.read_text())
    run.config_file.write_text(json.dumps(config | {option: value}))
    where = f"runs/monday/{run.name}"
    assert faults(where, cwd=place) == [f"{where}/{name}: is missing or empty"]


def test_a_folder_without_a_list_is_refused(place: Path) -> None:
    """Where nothing says what the files should be, verify does not say that they are sound."""
    words = "skin: no SHA256SUMS, sweep.json or config.json in it: nothing to verify it by"
    assert refusal(skinjob("verify", "skin", cwd=place)) == words
