"""Killed at any of its file operations, or met by a full disk there, a run loses nothing.

`python tests/train/test_kill_points.py` tries every file operation there is, and counts.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from killing import FULL, KILLED, attempt
from trees import left, make_sweep, make_tree
from untrained import write_untrained

from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS, VAL_METRICS
from skinjob.train.checkpoint import read_checkpoint

SAMPLE = 12  # points of each kind in the tests; the script tries all of them
SWEEPS = {
    "head": {"batch_sizes": (4, 8), "epochs": 3, "val_fraction": 0.25},
    "all": {"batch_sizes": (4,), "epochs": 3, "train": "all", "schedule": "cosine"},
}


class Trial:
    """A small sweep that was trained without interruption, and is trained again with some."""

    def __init__(self, train: str, folder: Path, data: Path, weights: Path) -> None:
        self.folder, self.data, self.weights, self.train = folder, data, weights, train
        self.numbers = itertools.count()
        whole = self.sweep()
        code, self.num_operations = attempt([run.folder for run in whole.runs()], None)
        assert code == 0
        self.wanted = [left(run) for run in whole.runs()]

    def sweep(self) -> Sweep:
        runs = self.folder / f"{self.train}-{next(self.numbers)}"
        return make_sweep(self.data, self.weights, runs, **SWEEPS[self.train])

    def survives(self, stops: list[int], how: str) -> None:
        """Trains a sweep that is stopped so often, and asserts that it ends as it would have."""
        sweep = self.sweep()
        runs = sweep.runs()
        for stop in stops:
            code, _ = attempt([run.folder for run in runs], stop, how)
            assert code in (-signal.SIGKILL, 0) if how == KILLED else code in (0, 1)
            for run in runs:
                require_whole_files(run)
        if any(run.state().status != "done" for run in runs):
            code, _ = attempt([run.folder for run in runs], None)
            assert code == 0
        assert [left(run) for run in runs] == self.wanted
        assert {run.state().status for run in runs} == {"done"}
        assert not [file for run in runs for file in run.folder.glob(".*.part")]


def require_whole_files(run: Run) -> None:
    """Asserts that what has its final name has its whole content."""
    if run.state_file.exists():
        json.loads(run.state_file.read_text())
    epochs = run.config().epochs
    rows = []
    if run.metrics_file.exists():
        with run.metrics_file.open(newline="") as lines:
            header, *rows = csv.reader(lines)
        assert set(METRICS) - set(VAL_METRICS) <= set(header) <= set(METRICS)
        assert [row[list(METRICS).index("epoch")] for row in rows] == [
            str(number) for number in range(1, len(rows) + 1)
        ]
    if run.predictions_file.exists():
        assert run.predictions_file.read_text().count("\n") == 1 + 8
        assert len(rows) == epochs
    if run.val_predictions_file.exists():
        assert run.val_predictions_file.read_text().count("\n") == 1 + 4
    if run.state().status != "done" and any(file.exists() for file in run.checkpoint_files):
        assert read_checkpoint(run, run.config()).epoch >= len(rows)


@pytest.fixture(scope="module", params=SWEEPS)
def trial(
    request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    folder = tmp_path_factory.mktemp("kills")
    data = make_tree(folder / "skin_cancer", num_train=8, num_test=4)
    return Trial(request.param, folder, data, weights)


@pytest.mark.parametrize("how", [KILLED, FULL])
def test_stopped_once_at_any_file_operation(trial: Trial, how: str) -> None:
    """A kill or a full disk, at whichever moment, costs at most the epoch it falls into."""
    points = random.Random(4).sample(range(1, trial.num_operations + 1), SAMPLE)
    for point in points:
        trial.survives([point], how)


def test_killed_again_and_again(trial: Trial) -> None:
    """Kills in a row, each in the attempt that goes on after the last, change no byte."""
    draws = random.Random(5)
    for _ in range(SAMPLE // 4):
        trial.survives([draws.randint(1, trial.num_operations) for _ in range(4)], KILLED)


def main() -> None:
    """Tries every point of both kinds, and prints how many there were."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_untrained(folder / "weights/resnet18.safetensors").path
        data = make_tree(folder / "skin_cancer", num_train=8, num_test=4)
        for train, how in itertools.product(SWEEPS, (KILLED, FULL)):
            trial = Trial(train, folder / how, data, weights)
            for point in range(1, trial.num_operations + 1):
                trial.survives([point], how)
            print(f"--train {train}: {how} at each of {trial.num_operations} file operations, all")
            print("  resumed to the bytes of the uninterrupted run", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    main()
