"""Training all layers: held against plain PyTorch, taken up from checkpoints, left as promised."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import SmallResNet
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18
from trees import left, make_sweep, make_tree

from skinjob.config import TrainConfig
from skinjob.data.images import Split, read_index
from skinjob.sweeps.layout import Run
from skinjob.train import all_layers, loop
from skinjob.train.images import ImageSource, View
from skinjob.train.job import run_job
from skinjob.train.loop import order
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing
TEST = View(Split.TEST)


@pytest.fixture(scope="module")
def weights(published_size: Path) -> Path:
    return published_size


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=6, num_test=4)


@pytest.fixture(scope="module")
def real(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of a real ResNet18."""
    run = make_run(data, weights, tmp_path_factory.mktemp("real"))
    run_job([run.folder])
    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network instead of ResNet18, for what does not depend on the network."""

    def build(*_: object) -> SmallResNet:
        torch.manual_seed(0)
        return SmallResNet()

    monkeypatch.setattr(all_layers, "build_model", build)


def make_run(data: Path, weights: Path, runs: Path, epochs: int = 2) -> Run:
    options = {"train": "all", "schedule": "cosine", "lrs": [0.001], "batch_sizes": [5]}
    return make_sweep(data, weights, runs, epochs=epochs, **options).runs()[0]


def plain_loop(config: TrainConfig, source: ImageSource) -> list[dict[str, float]]:
    """Trains all layers as one would without skinjob, in fp32 and in PyTorch's own layout."""
    model = resnet18(weights=None)
    model.load_state_dict(load_file(config.weights), strict=False)
    torch.manual_seed(config.seed)
    model.fc = nn.Linear(512, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    labels, test_labels = source.labels(Split.TRAIN), source.labels(Split.TEST)
    num_updates = config.epochs * len(order(12, 0, 1).split(config.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_updates)

    def images(view: View, indices: list[int]) -> torch.Tensor:
        return source.batch(view, indices, "cpu").contiguous()

    found = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for batch in order(len(labels), config.seed, epoch).split(config.batch_size):
            logits = model(images(View(Split.TRAIN, epoch), batch.tolist()))
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += [loss.item()] * len(batch)
        model.eval()
        with torch.no_grad():
            logits = model(images(TEST, list(range(len(test_labels)))))
        found.append(
            {
                "train_loss": float(np.mean(losses)),
                "test_loss": functional.cross_entropy(logits, test_labels).item(),
                "test_accuracy": (logits.argmax(1) == test_labels).float().mean().item(),
            }
        )
    return found


def test_all_layers_give_the_metrics_of_a_plain_loop(real: Run, tmp_path: Path) -> None:
    """Threads, memory format and schedule change no number beyond rounding."""
    run, config, sweep = real, real.config(), real.sweep
    images = read_index(sweep.images_file, Path(config.data), ("benign", "malignant"))
    source = ImageSource(images, config.augmentation_seed, tmp_path, PREPROCESSING)
    with run.metrics_file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row, plain in zip(rows, plain_loop(config, source), strict=True):
        for name, value in plain.items():
            assert float(row[name]) == pytest.approx(value, rel=0.02, abs=1e-3), name
    assert [row["updates"] for row in rows] == ["3", "6"]
    assert rows[1]["train_loss"] != rows[0]["train_loss"]  # it moves


@pytest.mark.parametrize(
    ("damaged", "repeated"), [(0, []), (1, [2]), (2, [1, 2])], ids=["none", "newest", "both"]
)
@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_from_its_newest_checkpoint_that_loads(
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: int,
    repeated: list[int],
) -> None:
    """A damaged checkpoint costs an epoch, two cost them all, and none changes a byte."""
    whole = make_run(data, weights, tmp_path / "whole", epochs=3)
    run_job([whole.folder])
    broken = make_run(data, weights, tmp_path / "broken", epochs=3)
    seen: list[int] = []
    train_epoch = loop.train_epoch

    def interrupted(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        seen.append(epoch)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_job([broken.folder])
    for file in broken.checkpoint_files[:damaged]:
        flip_a_byte(file)
    run_job([broken.folder])
    assert seen == [1, 2, 3, *repeated, 3]
    assert broken.log_file.read_text().count("is not used") == damaged
    assert left(broken) == left(whole)
    assert not any(file.exists() for file in broken.checkpoint_files)


def flip_a_byte(file: Path) -> None:
    """Changes a number in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.usefixtures("small")
def test_a_checkpoint_of_another_configuration_is_not_taken(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of two recipes are never mixed in one run."""
    whole, run = (make_run(data, weights, tmp_path / name, epochs=2) for name in "ab")
    run_job([whole.folder])
    other = make_run(data, weights, tmp_path / "other", epochs=3)
    stop_after_one(other, monkeypatch)
    run.checkpoint_files[0].write_bytes(other.checkpoint_files[0].read_bytes())
    run_job([run.folder])
    assert left(run) == left(whole)
    assert "another configuration" in run.log_file.read_text()


@pytest.mark.usefixtures("small")
def test_rows_that_were_lost_come_back_with_the_checkpoint(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metrics.csv that was removed, or torn, is whole again when the run goes on."""
    run = make_run(data, weights, tmp_path)
    stop_after_one(run, monkeypatch)
    first = run.metrics_file.read_text()
    run.metrics_file.write_text(first[:-20])
    run_job([run.folder])
    assert run.metrics_file.read_text().startswith(first)
    assert "continues after epoch 1" in run.log_file.read_text()
    with run.metrics_file.open(newline="") as lines:
        assert [row["epoch"] for row in csv.DictReader(lines)] == ["1", "2"]


def stop_after_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a run as a kill after its first epoch does."""
    train_epoch = loop.train_epoch

    def first_alone(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        if epoch > 1:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", first_alone)
        with pytest.raises(KeyboardInterrupt):
            run_job([run.folder])


def test_the_saved_model_makes_the_saved_predictions(data: Path, real: Run, tmp_path: Path) -> None:
    """model.safetensors is torchvision's ResNet18 and says what predictions.csv says."""
    run = real
    model = resnet18(num_classes=2)
    model.load_state_dict(load_file(run.trained_file("model")))
    model.eval()
    images = read_index(run.sweep.images_file, data, ("benign", "malignant"))
    source = ImageSource(images, 0, tmp_path, PREPROCESSING)
    with torch.no_grad():
        p = model(source.batch(TEST, range(8), "cpu")).softmax(1)[:, 1]
    with run.predictions_file.open(newline="") as lines:
        saved = [float(row["p_malignant"]) for row in csv.DictReader(lines)]
    assert p.tolist() == pytest.approx(saved, abs=1e-4)
