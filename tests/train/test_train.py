"""What a job trains, held against plain PyTorch, and what it leaves in its folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from commands import import_path
from safetensors.torch import load_file
from sklearn import metrics
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize
from trees import make_sweep, make_tree

from skinjob.config import TrainConfig
from skinjob.data.images import Split, read_index
from skinjob.errors import ConfigError, ImagesError, RunError, WeightsError
from skinjob.ranks import auc
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS, VAL_METRICS
from skinjob.train import loop, transforms
from skinjob.train.checkpoint import read_checkpoint
from skinjob.train.device import choose_device
from skinjob.train.evaluation import evaluate, train_scores
from skinjob.train.extract import FeatureExtractor
from skinjob.train.features import Features, ViewCache
from skinjob.train.forward import Forward
from skinjob.train.images import ImageSource, View
from skinjob.train.job import run_job
from skinjob.train.loop import order
from skinjob.train.model import build_backbone
from skinjob.train.views import Views
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing
TEST = View(Split.TEST)
FIRST = View(Split.TRAIN, 1)
CLOCKS = ("sweep", "seconds", "images_per_s", "time_utc")


@pytest.fixture(scope="module")
def weights(published_size: Path) -> Path:
    return published_size


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=10, num_test=4)


@pytest.fixture
def sweep(data: Path, weights: Path, tmp_path: Path) -> Sweep:
    return make_sweep(data, weights, tmp_path / "runs", epochs=2)


def views_of(run: Run) -> Views:
    config, info = run.config(), run.sweep.info()
    classes = info.images.classes
    images = read_index(run.sweep.images_file, Path(config.data), classes)
    seed, folder = config.augmentation_seed, run.sweep.cache_folder
    source = ImageSource(images, seed, folder, PREPROCESSING)
    forward = Forward(build_backbone(DEFAULT, Path(config.weights)), torch.float32, (8,))
    return Views(
        FeatureExtractor(lambda: forward, choose_device("cpu", "fp32"), source),
        weights_sha256=info.weights.sha256,
        epochs=config.epochs,
        cache=ViewCache(run.sweep.views_folder, DEFAULT.num_features),
        reporter=Mock(),
    )


def whole(features: Features) -> torch.Tensor:
    return torch.cat(list(features.batches(torch.arange(len(features)).split(7))))


def pixels_of(views: Views, view: View, indices: Sequence[int]) -> torch.Tensor:
    """Returns what the network sees of some images, (N, 3, 224, 224) in 0..255."""
    normal = views.source.batch(view, indices)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return ((normal * std + mean) * 255).round()


def rows(run: Run) -> list[dict[str, str]]:
    """Returns metrics.csv without what differs from one attempt to the next."""
    with run.metrics_file.open(newline="") as lines:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(lines)]


def plain_loop(config: TrainConfig, views: Views) -> list[dict[str, float]]:
    """Trains as one would without skinjob: the whole net, every image, every epoch, in fp32."""
    model = resnet18(weights=None)
    model.load_state_dict(load_file(config.weights), strict=False)
    model.requires_grad_(False)
    torch.manual_seed(config.seed)
    model.fc = nn.Linear(512, 2)
    model.eval()
    optimizer = torch.optim.Adadelta(model.fc.parameters(), lr=config.lr)

    def images(view: View, indices: list[int]) -> torch.Tensor:
        seen = pixels_of(views, view, indices) / 255
        return normalize(seen, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    labels, test_labels = (views.source.labels(split) for split in (Split.TRAIN, Split.TEST))
    records = []
    for epoch in range(1, config.epochs + 1):
        losses, hits = [], []
        for batch in order(len(labels), config.seed, epoch).split(config.batch_size):
            logits = model(images(View(Split.TRAIN, epoch), batch.tolist()))
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(batch)
            hits += (logits.argmax(1) == labels[batch]).tolist()
        with torch.no_grad():
            logits = model(images(TEST, list(range(len(test_labels)))))
        called, positive = logits.argmax(1) == 1, test_labels == 1
        records.append(
            {
                "train_loss": float(np.mean(losses)),
                "train_accuracy": float(np.mean(hits)),
                "test_loss": functional.cross_entropy(logits, test_labels).item(),
                "test_accuracy": (called == positive).float().mean().item(),
                "test_sensitivity": called[positive].float().mean().item(),
                "test_specificity": (~called)[~positive].float().mean().item(),
            }
        )
    return records


def test_head_on_views_gives_the_metrics_of_a_plain_loop(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """The shortcut through views changes no number: all are within 1e-4 of plain PyTorch."""
    sweep = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[8], epochs=3)
    run = sweep.runs()[0]
    run_job([run.folder])
    ours = rows(run)
    for mine, plain in zip(ours, plain_loop(run.config(), views_of(run)), strict=True):
        for name, value in plain.items():
            assert float(mine[name]) == pytest.approx(value, abs=1e-4), (mine["epoch"], name)
    assert [row["updates"] for row in ours] == ["3", "6", "9"]
    losses = [float(row["train_loss"]) for row in ours]
    assert losses[0] != pytest.approx(losses[2], abs=1e-3)  # it learns


def test_four_runs_at_once_compute_each_view_once(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """Runs at the same time share the views, and their numbers are those of one by one."""
    sizes, epochs = (2, 4, 8, 16), 5
    together = make_sweep(data, weights, tmp_path / "a", batch_sizes=sizes, epochs=epochs)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "skinjob", "train", str(run.folder)],
            stdout=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": "1"} | import_path(),
        )
        for run in together.runs()
    ]
    assert [job.wait() for job in jobs] == [0] * len(sizes)
    states = [run.state() for run in together.runs()]
    assert sum(state.views_computed for state in states) == epochs + 1
    assert {state.views_computed + state.views_read for state in states} == {epochs + 1}
    assert not list(together.views_folder.glob("*.claim"))

    apart = make_sweep(data, weights, tmp_path / "b", batch_sizes=sizes, epochs=epochs)
    for run in apart.runs():
        run_job([run.folder])
    assert [rows(run) for run in together.runs()] == [rows(run) for run in apart.runs()]


def test_a_finished_run_says_all_of_itself(sweep: Sweep) -> None:
    """Every file that the documentation promises is in the folder, and fits the others."""
    run = sweep.runs()[0]
    run_job([run.folder], job_id="12_0")
    state = run.state()
    assert (state.status, state.epoch, state.job_id, state.device) == ("done", 2, "12_0", "cpu")
    with run.metrics_file.open(newline="") as lines:
        reader = csv.DictReader(lines)
        metrics = list(reader)
    assert tuple(reader.fieldnames or ()) == tuple(n for n in METRICS if n not in VAL_METRICS)
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    with run.predictions_file.open(newline="") as lines:
        predictions = list(csv.DictReader(lines))
    right = sum(row["label"] == row["predicted"] for row in predictions) / len(predictions)
    assert right == pytest.approx(float(metrics[-1]["test_accuracy"]), abs=1e-6)
    assert load_file(run.trained_file("head"))["fc.weight"].shape == (2, 512)
    log = run.log_file.read_text()
    for words in ("device: cpu", "precision: fp32 (asked for)", "images/s", "epoch 2/2", "left"):
        assert words in log


def test_the_saved_head_makes_the_saved_predictions(sweep: Sweep) -> None:
    """The head can be put back on torchvision's ResNet18 and says what predictions.csv says."""
    run = sweep.runs()[0]
    run_job([run.folder])
    model = resnet18(num_classes=2)
    tensors = load_file(run.config().weights) | load_file(run.trained_file("head"))
    model.load_state_dict(tensors, strict=False)
    model.eval()
    views = views_of(run)
    with torch.no_grad():
        p = model(transforms.normalise(pixels_of(views, TEST, range(8)), PREPROCESSING)).softmax(1)[
            :, 1
        ]
    with run.predictions_file.open(newline="") as lines:
        saved = [float(row["p_malignant"]) for row in csv.DictReader(lines)]
    assert p.tolist() == pytest.approx(saved, abs=1e-4)


@pytest.mark.parametrize(("pause", "written"), [(0, [0, 1, 2]), (1e9, [0, 1, 1])])
def test_an_epoch_is_on_disk_when_a_job_ends_and_before_if_writing_takes_little(
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pause: float,
    written: list[int],
) -> None:
    """Whatever ends a job, other than a kill, its finished epochs are in metrics.csv.

    Before, they wait for the next time that the job writes, if writing takes long.
    """
    run, seen = make_sweep(data, weights, tmp_path, epochs=4).runs()[0], []
    train_epoch = loop.train_epoch

    def watched(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        seen.append(len(rows(run)))
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    monkeypatch.setattr(loop, "PAUSE_PER_WRITE", pause)
    monkeypatch.setattr(loop, "MOST_UNWRITTEN_S", pause)
    monkeypatch.setattr(loop, "train_epoch", watched)
    with pytest.raises(KeyboardInterrupt):
        run_job([run.folder])
    assert seen == written
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert run.state().epoch == read_checkpoint(run, run.config()).epoch == 2


def test_any_number_of_classes_trains(weights: Path, tmp_path: Path) -> None:
    """Three class folders give three logits, with the last class as the positive one."""
    data = make_tree(
        tmp_path / "data", num_train=3, num_test=2, classes=("benign", "malignant", "other")
    )
    run = make_sweep(data, weights, tmp_path / "runs", epochs=1).runs()[0]
    run_job([run.folder])
    assert load_file(run.trained_file("head"))["fc.weight"].shape == (3, 512)
    assert 0 <= float(rows(run)[0]["test_auc"]) <= 1


def test_a_loss_that_is_not_a_number_is_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    """A diverged run says the epoch and the update, and its state says failed."""
    run = make_sweep(data, weights, tmp_path / "runs", lrs=[1e38], epochs=9).runs()[0]
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at update \d+, in epoch \d+"):
        run_job([run.folder])
    state = run.state()
    assert state.status == "failed"
    assert "the loss is" in str(state.reason)
    assert "--lr" in str(state.fix)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(sweep: Sweep) -> None:
    """Nobody trains for days on a CPU without having said so."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = sweep.runs()[0]
    values = json.loads(run.config_file.read_text())
    run.config_file.write_text(json.dumps(values | {"device": "cuda"}))
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        run_job([run.folder])
    assert run.state().status == "failed"


def test_weights_are_checked_again_in_the_job(data: Path, weights: Path, tmp_path: Path) -> None:
    """A byte that changed between submit and train is caught before the first update."""
    copy = tmp_path / "resnet18.safetensors"
    content = bytearray(weights.read_bytes())
    copy.write_bytes(content)
    run = make_sweep(data, copy, tmp_path / "runs").runs()[0]
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        run_job([run.folder])


def test_images_are_checked_again_in_the_job(weights: Path, tmp_path: Path) -> None:
    """An image that was replaced between submit and train stops the run by its name."""
    data = make_tree(tmp_path / "data", num_train=3, num_test=2)
    run = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[2]).runs()[0]
    (data / "train/benign/0.jpg").write_bytes((data / "train/benign/1.jpg").read_bytes())
    with pytest.raises(ImagesError, match=r"benign/0.jpg has changed"):
        run_job([run.folder])


def test_a_dead_owners_claim_costs_time_alone(sweep: Sweep) -> None:
    """A view that a killed job had begun is computed by the next run that wants it."""
    run = sweep.runs()[0]
    views = views_of(run)
    views.cache.folder.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert views.cache.claim(views.key(FIRST))
    claim = next(views.cache.folder.glob("*.claim"))
    assert not views.cache.claim(views.key(FIRST))  # its owner, this process, is alive
    claim.write_text(claim.read_text().split()[0] + f" {dead.pid}")
    assert views.cache.claim(views.key(FIRST))


def test_a_damaged_view_is_computed_again(sweep: Sweep) -> None:
    """A cache file that is cut off is no view: it is replaced by the right one."""
    views = views_of(sweep.runs()[0])
    features = whole(views.get(FIRST))
    file = views.cache.file(views.key(FIRST))
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(whole(views.get(FIRST)), features)


@pytest.mark.parametrize(
    "change", [{"weights": "0" * 64}, {"precision": "bf16"}, {"augmentation_seed": "1"}]
)
def test_a_view_is_named_by_all_it_depends_on(sweep: Sweep, change: dict[str, Any]) -> None:
    """Other weights, precision or augmentation never meet an old view."""
    views = views_of(sweep.runs()[0])
    key = views.key(FIRST)
    assert views.cache.file(key) != views.cache.file(key | change)
    assert views.cache.file(key) != views.cache.file(views.key(View(Split.TRAIN, 2)))


def test_auc_counts_pairs() -> None:
    """The AUC is the share of pairs in the right order, ties counting one half."""
    draws = np.random.default_rng(0)
    scores = draws.integers(0, 10, (3, 50)).astype(np.float32)
    positive = draws.random((3, 50)) < 0.4
    for mine, own, area in zip(scores, positive, auc(scores, positive), strict=True):
        pairs = [(p > n) + 0.5 * (p == n) for p in mine[own] for n in mine[~own]]
        assert area == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(scores, positive & False)).all()
    assert np.isnan(auc(scores, positive | True)).all()
    scores[1, 7] = np.nan
    assert np.isnan(auc(scores, positive)).tolist() == [False, True, False]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_training_images_have_the_metrics_of_the_other_splits(num_classes: int) -> None:
    """Each run has its own order of the images; sensitivity and the others are scikit-learn's."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 60, num_classes)
    labels = torch.stack([torch.randperm(60) % num_classes for _ in range(2)])
    losses, by_name = train_scores(logits, labels, 1)
    assert losses.shape == (2, 60)
    for run, (own, of) in enumerate(zip(logits, labels, strict=True)):
        scores = {name.removeprefix("train_"): float(v[run]) for name, v in by_name.items()}
        plain = {name: float(v) for name, v in evaluate(own.unsqueeze(0), of, 1).items()}
        assert scores == pytest.approx(plain)
        called, truth = own.argmax(dim=1) == 1, of == 1
        assert scores == pytest.approx(
            {
                "loss": metrics.log_loss(of, own.double().softmax(dim=1)),
                "accuracy": metrics.accuracy_score(of, own.argmax(dim=1)),
                "auc": metrics.roc_auc_score(truth, own.softmax(dim=1)[:, 1]),
                "sensitivity": metrics.recall_score(truth, called),
                "specificity": metrics.recall_score(truth, called, pos_label=0),
            },
            abs=1e-5,
        )
