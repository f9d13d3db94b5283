"""The converged head: it is the best head there is, and computing it harms no run."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from trees import make_sweep

from skinjob.submit.submit import wait
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import Converged, Status
from skinjob.train import claims, converged, job
from skinjob.train.converged import claimed, fitted
from skinjob.train.job import run_job


def features(num_rows: int, num_classes: int, num_features: int = 12) -> tuple[Tensor, Tensor]:
    """Returns features that depend on each other as those of a backbone do, and noisy labels."""
    draws = np.random.default_rng(num_rows)
    scales = np.geomspace(1, 1e-3, num_features)
    rows = draws.normal(2, scales, (num_rows, num_features)) @ draws.normal(
        size=(num_features, num_features)
    )
    rows[:, -1] = 0  # a feature that no image has
    odds = rows @ draws.normal(size=(num_features, num_classes)) + draws.gumbel(
        size=(num_rows, num_classes)
    )
    odds -= odds.mean(axis=0)
    return torch.from_numpy(rows), torch.from_numpy(odds.argmax(axis=1))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_it_is_scikit_learns_head(num_classes: int) -> None:
    """Loss and probabilities are those of a logistic regression without a penalty."""
    rows, labels = features(600, num_classes)
    fit = fitted(rows, labels, num_classes)
    centred = ((rows - rows.mean(0)) / rows.std(0).clamp(min=1e-12)).numpy()
    model = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-10, max_iter=10_000)
    theirs = torch.from_numpy(model.fit(centred, labels).predict_proba(centred))
    assert torch.allclose(fit.logits(rows).softmax(1), theirs, atol=1e-5)
    loss = float(functional.cross_entropy(fit.logits(rows), labels))
    assert loss <= float(functional.nll_loss(theirs.log(), labels)) + 1e-9
    assert not fit.separates


def test_its_gradient_is_nearly_zero() -> None:
    """No small change of any number of the head makes the loss smaller."""
    rows, labels = features(600, 3)
    fit = fitted(rows, labels, 3)

    def gradient(weight: Tensor, bias: Tensor) -> float:
        parts = [part.clone().requires_grad_() for part in (weight, bias)]
        functional.cross_entropy(rows @ parts[0] + parts[1], labels).backward()
        return float(torch.cat([part.grad.flatten() for part in parts]).norm())

    at_zero = gradient(torch.zeros_like(fit.weight), torch.zeros_like(fit.bias))
    assert gradient(fit.weight, fit.bias) < 1e-5 * at_zero
    assert fit.gradient < 1e-5


@pytest.mark.parametrize(("num_rows", "num_features"), [(20, 40), (200, 5)])
def test_classes_that_can_be_separated_have_no_best_head(num_rows: int, num_features: int) -> None:
    """The fit ends with a head of which each larger multiple is better."""
    rows, _ = features(num_rows, 2, num_features)
    labels = (rows[:, 0] > rows[:, 0].median()).long()
    fit = fitted(rows, labels, 2)
    losses = [
        float(functional.cross_entropy(factor * fit.logits(rows), labels))
        for factor in (1, 10, 10_000)
    ]
    assert fit.separates
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-6


def test_a_fit_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not the smallest is not given for it."""
    monkeypatch.setattr(converged, "MOST_ITERATIONS", 2)
    with pytest.raises(RuntimeError, match="after 2 iterations the gradient is still"):
        fitted(*features(600, 3), 3)


class Colours(nn.Module):
    """A backbone that sees the mean colour of an image, so that no head separates the classes."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.pad(images.mean(dim=(2, 3)), (0, 509))


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "build_backbone", lambda *_: Colours())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of random colours, whatever their class."""
    root, draws = tmp_path_factory.mktemp("data") / "skin_cancer", np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for name in ("benign", "malignant"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.normal(draws.integers(60, 200, 3), 20, (40, 40, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def sweep_of(data: Path, weights: Path, runs: Path, **given: Any) -> Sweep:
    return make_sweep(data, weights, runs, **{"epochs": 3, "lrs": (1.0,), "seeds": (0, 1)} | given)


def train(sweep: Sweep, batch_size: int | None = None) -> None:
    names = "bs" if batch_size is None else f"bs{batch_size:04d}"
    run_job([run.folder for run in sweep.runs() if run.name.startswith(names)])


def known(sweep: Sweep) -> Converged:
    record = sweep.converged()
    assert record
    return record


def statuses(sweep: Sweep) -> set[Status]:
    return {run.state().status for run in sweep.runs()}


def test_the_first_job_that_ends_computes_it(data: Path, weights: Path, tmp_path: Path) -> None:
    """It is below every run on the same views, and no second job repeats it."""
    sweep = sweep_of(data, weights, tmp_path, val_fraction=0.25)
    train(sweep, 4)
    record = known(sweep)
    assert (record.exists, record.views, record.epochs, record.images) == (True, 3, 3, 24)
    assert record.gradient < 1e-5
    names = ("loss", "accuracy", "auc", "sensitivity", "specificity")
    wanted = {f"{split}_{name}" for split in ("val", "test") for name in names}
    assert set(record.metrics) == wanted | {"train_loss", "train_accuracy"}
    assert record.metrics["train_loss"] < math.log(2)
    assert "converged head: train loss 0." in sweep.runs()[0].log_file.read_text()
    changed = sweep.converged_file.stat().st_mtime_ns
    train(sweep, 8)
    assert sweep.converged_file.stat().st_mtime_ns == changed
    assert statuses(sweep) == {Status.DONE}
    assert not list(sweep.folder.glob("*.claim"))


def test_its_metrics_are_those_of_the_best_head_on_the_views(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """scikit-learn's head on all views of train has the same losses on train and on test."""
    sweep = sweep_of(data, weights, tmp_path, batch_sizes=[4], seeds=[0])
    train(sweep)
    views: dict[str, list[np.ndarray[Any, Any]]] = {"32": [], "12": []}  # by number of images
    for file in sweep.views_folder.glob("*.safetensors"):
        rows = load_file(file)["features"][:, :3].astype(np.float64)
        views[str(len(rows))].append(rows)
    labels = [np.repeat([0, 1], count) for count in (16, 6)]
    model = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-10)
    model.fit(np.concatenate(views["32"]), np.tile(labels[0], 3))
    chances = model.predict_proba(views["12"][0])
    metrics = known(sweep).metrics
    loss = log_loss(np.tile(labels[0], 3), model.predict_proba(np.concatenate(views["32"])))
    assert len(views["32"]) == 3
    assert metrics["train_loss"] == pytest.approx(loss, abs=1e-7)
    assert metrics["test_loss"] == pytest.approx(log_loss(labels[1], chances), abs=1e-4)
    assert metrics["test_auc"] == pytest.approx(roc_auc_score(labels[1], chances[:, 1]))


def test_of_many_images_a_part_is_used_and_counted(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: first by fewer views, then by fewer images of the first view."""
    for most, views, images in ((70, 2, 32), (20, 1, 16)):
        monkeypatch.setattr(converged, "MOST_BYTES", most * 8 * 512)
        sweep = sweep_of(data, weights, tmp_path / str(most), batch_sizes=[4], seeds=[0])
        train(sweep)
        record = known(sweep)
        assert (record.views, record.epochs, record.images) == (views, 3, images)


@pytest.mark.parametrize("error", [MemoryError("too many images"), KeyboardInterrupt()])
def test_a_job_that_ends_while_it_computes_harms_no_run(
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """Its runs are done, the log says what happened, and the next job of the sweep computes it."""

    def fail(*_: object) -> None:
        raise error

    sweep = sweep_of(data, weights, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converged, "fitted", fail)
        if isinstance(error, Exception):
            train(sweep, 4)
            log = sweep.runs()[0].log_file.read_text()
            assert "converged head: not computed: too many images" in log
        else:
            with pytest.raises(KeyboardInterrupt):
                train(sweep, 4)
    assert [run.state().status for run in sweep.runs()[:2]] == [Status.DONE] * 2
    assert sweep.converged() is None
    train(sweep, 8)
    assert known(sweep).exists


def test_the_job_with_the_most_epochs_has_the_last_word(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """At equal updates a larger batch sees more views: the head is that of all of them."""
    sweep = sweep_of(data, weights, tmp_path, updates=12, seeds=[0])
    for size, epochs in ((4, 2), (8, 3)):
        train(sweep, size)
        assert (known(sweep).views, known(sweep).epochs) == (epochs, epochs)
    smaller = sweep_of(data, weights, tmp_path / "other", updates=12, seeds=[0])
    for size in (8, 4):
        train(smaller, size)
    assert known(smaller).metrics == known(sweep).metrics


def test_a_claim_of_a_killed_job_ends_with_it(data: Path, weights: Path, tmp_path: Path) -> None:
    """A job that is killed leaves its claim; a later job of the sweep takes it over."""
    sweep = sweep_of(data, weights, tmp_path, batch_sizes=[4], seeds=[0])
    claims.claim(sweep.converged_file)
    mark = sweep.converged_file.with_suffix(".claim")
    mark.write_text(mark.read_text().rpartition(" ")[0] + " 999999999")
    train(sweep)
    assert known(sweep).views == 3


def test_a_waiting_submit_waits_for_it(tmp_path: Path) -> None:
    """When `submit --wait` ends, the report has all that the sweep will ever have."""
    sweep = Sweep(tmp_path)
    sweep.sweep_file.write_text('{"recipe": {}, "runs": [], "cluster": {"cluster": "local"}}')
    assert claims.claim(sweep.converged_file)
    start = time.monotonic()
    Timer(0.3, claims.release, [sweep.converged_file]).start()
    assert wait(sweep, (), lambda run: None)
    assert time.monotonic() - start > 0.29


def test_a_job_with_more_epochs_waits_for_a_job_with_fewer(tmp_path: Path) -> None:
    """The head is that of all epochs, whichever job ends first."""
    sweep = Sweep(tmp_path)
    with claimed(sweep, 3, waits=True) as is_first, ThreadPoolExecutor(1) as other:

        def claim_more(epochs: int) -> bool:
            with claimed(sweep, epochs, waits=True) as is_own:
                return is_own

        later = other.submit(claim_more, 20)
        time.sleep(0.3)
        assert is_first
        assert not later.done()
        claims.release(sweep.converged_file)
        assert later.result()
    with claimed(sweep, 3, waits=False), claimed(sweep, 3, waits=False) as is_second:
        assert not is_second  # all jobs have the same epochs: no wait
