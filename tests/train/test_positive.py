"""Which class the metrics look for is said before the queue, and can be chosen."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import only_sweep, recorded, refusal, skinjob
from trees import make_sweep, make_tree

from skinjob.report.build import build_report
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS
from skinjob.train.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from skinjob.train.evaluation import evaluate
from skinjob.train.job import run_job

SMALL = ("--cluster", "local", "--device", "cpu", "--batch-sizes", "4", "--epochs", "1")
OLD_FIELDS = {
    *("data", "weights", "batch_size", "train", "epochs", "lr", "schedule", "seed"),
    *("augmentation_seed", "device", "precision"),
}
"""What a run's config.json held before a positive class could be chosen."""


def test_the_plan_says_which_class_is_positive(project: Path) -> None:
    """Nobody learns from the report that the alphabet has decided what a sensitivity is."""
    last = skinjob("submit", *SMALL, "--dry-run", cwd=project)
    assert "positive malignant (the last by name; --positive CLASS chooses another)" in last.stdout
    chosen = skinjob("submit", *SMALL, "--dry-run", "--positive", "benign", cwd=project)
    assert "positive benign (asked for with --positive)" in chosen.stdout


@pytest.mark.parametrize("is_in_file", [False, True])
def test_a_positive_class_that_is_none_is_refused_with_those_that_are(
    project: Path, is_in_file: bool
) -> None:
    """A slip in the name costs no place in the queue."""
    (project / "job.toml").write_text("[train]\npositive = 'Malignant'\n")
    given = ("--job", "job.toml") if is_in_file else ("--positive", "Malignant")
    result = skinjob("submit", *SMALL, *given, cwd=project)
    words = "positive class 'Malignant' is not one of benign, malignant"
    assert refusal(result) == ("job file job.toml: " if is_in_file else "") + words
    if not is_in_file:
        fix = shlex.join(["skinjob", "submit", *SMALL, "--positive", "malignant"])
        assert f"fix:   {fix}\n" in result.stderr
    assert not (project / "runs").exists()


def test_metrics_look_for_the_class_that_is_asked_for() -> None:
    """With three classes each can be the positive one, against the two others."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    logits = torch.eye(3)[[0, 1, 1, 1, 1, 0]] * 5
    found = [evaluate(logits.unsqueeze(0), labels, positive) for positive in range(3)]
    assert [one["sensitivity"] for one in found] == [0.5, 1, 0]
    assert [one["specificity"] for one in found] == [0.75, 0.5, 1]
    assert [one["auc"] for one in found] == [0.625, 0.75, 0.5]
    assert [one["accuracy"] for one in found] == [0.5] * 3


def last_row(run: Run) -> dict[str, str]:
    with run.metrics_file.open(newline="") as lines:
        return list(csv.DictReader(lines))[-1]


@pytest.mark.parametrize("layers", ["head", "all"])
def test_a_chosen_class_swaps_sensitivity_and_specificity_and_nothing_else(
    tmp_path: Path, weights: Path, layers: str
) -> None:
    """Of two classes the training is the same; the report's page names the class."""
    data = make_tree(tmp_path / "data", num_train=4, num_test=3)
    rows, pages = [], []
    for name in (None, "benign"):
        runs = tmp_path / f"runs-{name}"
        sweep = make_sweep(
            data, weights, runs, batch_sizes=[4], epochs=1, train=layers, positive=name
        )
        run_job([sweep.runs()[0].folder])
        rows.append(last_row(sweep.runs()[0]))
        pages.append(build_report([sweep]).folder.joinpath("index.html").read_text())
    plain, chosen = rows
    assert chosen["test_sensitivity"] == plain["test_specificity"]
    assert chosen["test_specificity"] == plain["test_sensitivity"]
    for name in ("train_loss", "test_loss", "test_accuracy", "test_auc"):
        assert chosen[name] == plain[name]
    assert "“malignant” as the positive class." in pages[0]
    assert "“benign” as the positive class." in pages[1]


def as_before(run: Run) -> dict[str, Any]:
    """Returns the run's config as it was written before a positive class could be chosen."""
    config = {
        name: value for name, value in vars_of(run).items() if name not in ("positive", "format")
    }
    assert config.keys() == OLD_FIELDS
    run.config_file.write_text(json.dumps(config))
    return config


def vars_of(run: Run) -> dict[str, Any]:
    values = json.loads(run.config_file.read_text())
    assert isinstance(values, dict)
    return values


def test_a_sweep_from_before_is_taken_up_again(project: Path) -> None:
    """An upgrade orphans no sweep: the same submit finds it, and another class makes another."""
    assert skinjob("submit", *SMALL, "--wait", cwd=project).returncode == 0
    sweep = only_sweep(project / "runs")
    config = as_before(sweep.runs()[0])
    info = recorded(sweep)
    del info["images"]["positive"]
    recipe = {k: v for k, v in config.items() if k not in ("batch_size", "lr", "seed")}
    recipe |= {"data": info["images"]["fingerprint"], "weights": info["weights"]["sha256"]}
    info["identity"] = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    sweep.sweep_file.write_text(json.dumps(info))
    for given in ((), ("--positive", "malignant")):
        again = skinjob("submit", *SMALL, *given, cwd=project).stdout
        assert f"{sweep.name}  (exists, continues)" in again
        assert "done  not repeated" in again
    other = skinjob("submit", *SMALL, "--positive", "benign", "--dry-run", cwd=project).stdout
    assert "exists, continues" not in other


def test_a_checkpoint_from_before_is_gone_on_from(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that an upgrade interrupts loses no epoch; one of another class is not taken for it."""
    data = make_tree(tmp_path / "data", num_train=4, num_test=3)
    run = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[4]).runs()[0]
    config = as_before(run)
    rows = [["x"] * len(METRICS)]
    with monkeypatch.context() as patch:
        patch.setattr("skinjob.config.TrainConfig.record", lambda _: config)
        save_checkpoint(run, run.config(), Checkpoint(rows, {"updates": 1}, "fp32"))
    assert read_checkpoint(run, run.config()).rows == rows
    run.config_file.write_text(json.dumps(config | {"positive": "benign"}))
    assert read_checkpoint(run, run.config()).rows == ()
