"""Images that are held out of training are what choices are made on, and the test set is not."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import use_small_networks
from PIL import Image
from torch import Tensor
from trees import left, make_sweep, make_tree

from skinjob.data.images import Split, read_index
from skinjob.errors import ImagesError
from skinjob.report.clinical_case import case_of
from skinjob.report.comparison import read_all_predictions
from skinjob.report.summary import summarize
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS, VAL_METRICS
from skinjob.train import loop
from skinjob.train.decoded import decode
from skinjob.train.draws import central_boxes
from skinjob.train.evaluation import evaluate
from skinjob.train.images import ImageSource, View
from skinjob.train.job import run_job
from skinjob.train.transforms import each
from skinjob.weights.backbones import DEFAULT

LAYERS = pytest.mark.parametrize("layers", ["head", "all"])


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is which images the networks see."""
    use_small_networks(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=12, num_test=4)


def sweep_of(data: Path, weights: Path, runs: Path, layers: str, **given: Any) -> Sweep:
    given = {"batch_sizes": [4], "epochs": 4, "val_fraction": 0.25} | given
    return make_sweep(data, weights, runs, train=layers, **given)


def trained(sweep: Sweep) -> Run:
    run_job([run.folder for run in sweep.runs()])
    return sweep.runs()[0]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def without_test(run: Run) -> tuple[Any, ...]:
    """Returns what a run leaves, without the numbers of the test images."""
    rows, _, *files = left(run)
    return [{k: v for k, v in row.items() if not k.startswith("test_")} for row in rows], *files


@LAYERS
def test_what_is_held_out_is_never_trained_on(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    """In no epoch does a view or a batch of training hold a validation image, or miss another."""
    seen: dict[View, set[str]] = {}
    batch = ImageSource.batch

    def watched(source: ImageSource, view: View, indices: Iterable[int], *rest: str) -> Tensor:
        images, files = list(indices), source.files(view.split)
        seen.setdefault(view, set()).update(files[index].path for index in images)
        return batch(source, view, images, *rest)

    monkeypatch.setattr(ImageSource, "batch", watched)
    run = trained(sweep_of(data, weights, tmp_path, layers))
    held = {row["image"] for row in table(run.val_predictions_file)}
    assert (len(held), seen.pop(View(Split.VAL))) == (6, held)
    assert {path.split("/")[0] for path in held} == {"train"}
    assert all(path.startswith("test/") for path in seen.pop(View(Split.TEST)))
    everything = {str(file.relative_to(data)) for file in data.glob("train/*/*")}
    assert set(seen) == {View(Split.TRAIN, epoch) for epoch in range(1, 5)}
    assert all(paths == everything - held for paths in seen.values())


@LAYERS
def test_the_test_set_changes_the_numbers_of_the_test_set_alone(
    data: Path, weights: Path, tmp_path: Path, layers: str
) -> None:
    """With other labels and images in test, the same is held out, trained and chosen."""
    other = shutil.copytree(data, tmp_path / "other")
    for now, then in (("benign", "x"), ("malignant", "benign"), ("x", "malignant")):
        (other / "test" / now).rename(other / "test" / then)
    Image.fromarray(np.zeros((60, 50, 3), np.uint8)).save(other / "test/benign/0.jpg")
    shutil.copy(next(data.glob("train/benign/*")), other / "test/malignant/new.jpg")
    runs = [
        trained(sweep_of(folder, weights, tmp_path / name, layers))
        for folder, name in ((data, "a"), (other, "b"))
    ]
    assert without_test(runs[0]) == without_test(runs[1])
    rows = [table(run.metrics_file)[-1] for run in runs]
    assert rows[0]["test_loss"] != rows[1]["test_loss"]
    best, cutoffs = zip(*map(chosen, runs), strict=True)
    assert best[0] == best[1]
    assert cutoffs[0] == cutoffs[1]


def chosen(run: Run) -> tuple[int, dict[float, list[float]]]:
    """Returns what the report chooses: the best epoch, and the cutoffs by sensitivity."""
    own = group_runs([read_sweep(run.sweep)])
    test, val = (read_all_predictions(own, split) for split in (Split.TEST, Split.VAL))
    case = case_of(own[0], test, val, None)
    assert case is not None
    return summarize(own).loc[0, "best_epoch"], case.cutoffs


@LAYERS
def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    """Rows, predictions of both splits, and trained layers have the same bytes."""
    whole = trained(sweep_of(data, weights, tmp_path / "whole", layers))
    stopped = sweep_of(data, weights, tmp_path / "stopped", layers).runs()[0]
    train_epoch, finish = loop.train_epoch, loop.RunLoop.finish

    def stop_at_three(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name, stops in (("train_epoch", stop_at_three), ("RunLoop.finish", stop)):
        monkeypatch.setattr(f"skinjob.train.loop.{name}", stops)
        with pytest.raises(KeyboardInterrupt):
            run_job([stopped.folder])
        monkeypatch.setattr(loop, "train_epoch", train_epoch)
        monkeypatch.setattr(loop.RunLoop, "finish", finish)
    assert len(table(stopped.metrics_file)) == 4
    run_job([stopped.folder])
    assert left(stopped) == left(whole)


@LAYERS
def test_val_is_measured_after_each_epoch_as_test_is(
    data: Path, weights: Path, tmp_path: Path, layers: str
) -> None:
    """Of both splits there are the same five numbers; those of the last epoch fit the predictions.

    Without a validation split neither the columns nor the file are there.
    """
    run = trained(sweep_of(data, weights, tmp_path / "val", layers))
    rows = table(run.metrics_file)
    assert list(rows[0]) == list(METRICS)
    assert all(row[name] for row in rows for name in VAL_METRICS)
    for split, file in (("val", run.val_predictions_file), ("test", run.predictions_file)):
        predictions = table(file)
        chances = [[float(row["p_benign"]), float(row["p_malignant"])] for row in predictions]
        labels = torch.tensor([row["label"] == "malignant" for row in predictions]).long()
        for name, value in evaluate(torch.tensor([chances]).log(), labels, 1).items():
            assert float(rows[-1][f"{split}_{name}"]) == pytest.approx(float(value), abs=1e-5)
    log = run.log_file.read_text()
    assert "images: 18 train, 6 val, 8 test, classes" in log
    last = rows[-1]
    assert f"val loss {float(last['val_loss']):.4f}" in log
    assert f"test loss {float(last['test_loss']):.4f}" in log

    plain = trained(sweep_of(data, weights, tmp_path / "none", layers, val_fraction=0.0))
    names = list(table(plain.metrics_file)[0])
    assert names == [name for name in METRICS if name not in VAL_METRICS]
    assert not plain.val_predictions_file.exists()


def test_a_view_of_val_is_made_as_that_of_test(data: Path, weights: Path, tmp_path: Path) -> None:
    """It is the middle of each image, not a random crop, and the same in every epoch."""
    sweep = sweep_of(data, weights, tmp_path, "head")
    images = read_index(sweep.images_file, data, sweep.info().images.classes)
    source = ImageSource(images, 0, tmp_path / "cache", DEFAULT.preprocessing)
    for index, file in enumerate(images.split("val")):
        (pixels,) = source.batch(View(Split.VAL), [index])
        side = DEFAULT.preprocessing.crop
        middle = central_boxes(np.array([decode(file, images.store, side).shape[:2]]))
        (wanted,) = each([decode(file, images.store, side)], middle, DEFAULT.preprocessing)
        assert torch.equal(pixels, wanted)


def test_a_job_trains_on_no_image_that_was_held_out_at_submit(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """If images.csv is changed so that a validation image would be trained on, the job says so."""
    sweep = sweep_of(data, weights, tmp_path, "head")
    text = sweep.images_file.read_text()
    assert text.count(",val,") == 6
    sweep.images_file.write_text(text.replace(",val,", ",train,", 1))
    with pytest.raises(ImagesError, match=r"images\.csv has changed since the submit"):
        trained(sweep)
