"""With `updates`, each run makes the same number of updates, and is tested after the same ones."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from killing import use_small_networks
from trees import CLOCKS, left, make_sweep, make_tree

from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import TESTS
from skinjob.train import loop
from skinjob.train.job import run_job

LAYERS = pytest.mark.parametrize("layers", ["head", "all"])
PER_EPOCH = {4: 6, 8: 3}  # the last batch of an epoch is smaller


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is after which updates a run is tested and ends."""
    use_small_networks(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=11, num_test=4)


def trained(data: Path, weights: Path, runs: Path, layers: str, **given: Any) -> Sweep:
    sweep = make_sweep(data, weights, runs, train=layers, schedule="cosine", **given)
    run_job([run.folder for run in sweep.runs()])
    return sweep


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(lines)]


def numbers(file: Path, column: str) -> list[float]:
    return [float(row[column]) for row in table(file)]


@LAYERS
def test_all_runs_are_tested_after_the_same_updates(
    data: Path, weights: Path, tmp_path: Path, layers: str
) -> None:
    """25 updates: a test every 2 and at the end, in 5 epochs of batch size 4 and 9 of 8."""
    sweep = trained(data, weights, tmp_path, layers, updates=25)
    if layers == "head":
        converged = json.loads(sweep.converged_file.read_text())
        assert converged["epochs"] == 9, "the epochs of the largest batch, which sees most views"
    for run in sweep.runs():
        size, epochs = run.config().batch_size, {4: 5, 8: 9}[run.config().batch_size]
        updates = [int(n) for n in numbers(run.tests_file, "update")]
        assert updates == [*range(2, 25, 2), 25]
        assert run.tests_file.read_text().splitlines()[0] == ",".join(TESTS)
        epoch_of = numbers(run.tests_file, "epoch")
        assert epoch_of == [-(-update // PER_EPOCH[size]) for update in updates]
        ends = [min(25, epoch * PER_EPOCH[size]) for epoch in range(1, epochs + 1)]
        assert numbers(run.metrics_file, "updates") == ends
        state = run.state()
        assert (state.status, state.epoch, state.updates) == ("done", epochs, 25)
        rows = {int(row["updates"]): row for row in table(run.metrics_file)}
        last_lr = 0.1 * 0.5 * (1 + math.cos(math.pi * 24 / 25))
        assert float(rows[25]["lr"]) == pytest.approx(last_lr, rel=1e-5), "the cosine ends at 25"
        for test in table(run.tests_file):
            if row := rows.get(int(test["update"])):
                shared = [("test_loss", "test_loss"), ("test_acc", "test_accuracy")]
                shared += [("test_auc", "test_auc"), ("epoch", "epoch")]
                assert [test[mine] for mine, _ in shared] == [row[other] for _, other in shared]


def test_updates_that_end_an_epoch_change_no_number(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """18 updates are 3 epochs of 6: rows, predictions and trained layers are the same bytes."""
    given = {"batch_sizes": [4]}
    run = trained(data, weights, tmp_path / "a", "head", updates=18, **given).runs()[0]
    other = trained(data, weights, tmp_path / "b", "head", epochs=3, **given).runs()[0]
    *mine, _ = left(run)
    assert tuple(mine) == left(other)


def test_the_training_loss_of_a_test_is_of_the_images_since_the_last(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """Over all tests and over all epochs, the images have the same sum of losses."""
    run = trained(data, weights, tmp_path, "head", updates=61, batch_sizes=[4]).runs()[0]
    images = [min(4 * update, 22) for update in range(1, 7)]  # at the updates of an epoch
    done = [22 * ((update - 1) // 6) + images[(update - 1) % 6] for update in range(1, 62)]
    ends = [0, *(done[int(update) - 1] for update in numbers(run.tests_file, "update"))]
    losses = numbers(run.tests_file, "train_loss")
    total = sum(loss * (b - a) for loss, a, b in zip(losses, ends[:-1], ends[1:], strict=True))
    epochs = numbers(run.metrics_file, "train_loss")
    assert ends[-1] == 10 * 22 + 4
    assert total == pytest.approx(22 * sum(epochs[:-1]) + 4 * epochs[-1], abs=1e-3)


@LAYERS
def test_a_run_that_goes_on_leaves_the_same_tests(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    """A stop between two tests, after an epoch, changes no byte of what the run leaves."""
    given = {"updates": 25, "batch_sizes": [8]}  # a test every 2, an epoch every 3
    whole = trained(data, weights, tmp_path / "whole", layers, **given).runs()[0]
    train_epoch = loop.train_epoch

    def stop_at_four(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        if epoch == 4:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    monkeypatch.setattr(loop, "train_epoch", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        trained(data, weights, tmp_path / "stopped", layers, **given)
    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    stopped = Run(tmp_path / "stopped/sweep" / whole.name)
    assert numbers(stopped.tests_file, "update") == [2, 4, 6, 8]
    run_job([stopped.folder])
    assert left(stopped) == left(whole)
