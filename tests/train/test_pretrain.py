"""The demo's own backbone: trained on drawn shapes, used on drawn lesions, made once."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import import_path
from local_server import Site, serving
from numpy.typing import NDArray
from safetensors.numpy import load_file
from state_dict_maker import write_old_layout

from skinjob.cli import cli
from skinjob.commands import demo as command
from skinjob.data.shapes import KINDS, draw_shape
from skinjob.sweeps.layout import Run, sweeps
from skinjob.train import pretrain as pretrain_module
from skinjob.train.pretrain import SIDE, pretrain
from skinjob.weights import fetch as fetch_module
from skinjob.weights.backbones import DEFAULT
from skinjob.weights.file import read_weights_info
from skinjob.weights.tensors import COUNTER

NOWHERE = "http://127.0.0.1:9"  # the port that discards: nothing listens there


@pytest.fixture(scope="module")
def offline_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which `skinjob demo` ran without internet, and what it printed."""
    folder = tmp_path_factory.mktemp("offline")
    return folder, run_offline(folder)


def run_offline(folder: Path) -> str:
    """Returns what `skinjob demo` prints in *folder* where no proxy answers."""
    offline = {"https_proxy": NOWHERE, "HTTPS_PROXY": NOWHERE, "no_proxy": "", "NO_PROXY": ""}
    return subprocess.run(
        [sys.executable, "-m", "skinjob", "demo"],
        cwd=folder,
        env=os.environ | offline | import_path(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout


def test_a_demo_without_internet_says_what_it_did(offline_demo: tuple[Path, str]) -> None:
    """One line tells of the pretraining, one notice of what the numbers are."""
    folder, output = offline_demo
    assert output.count("no internet: pretrained ResNet18 here for") == 1
    assert output.count("A demo:") == 1
    (sweep,) = sweeps(folder / "demo/runs")
    assert sweep.info().weights.kind == "demo"


def test_the_demo_shows_the_story(offline_demo: tuple[Path, str]) -> None:
    """Loss falls, accuracy ends well above chance, and larger batches lag at equal epochs."""
    (sweep,) = sweeps(offline_demo[0] / "demo/runs")
    accuracy, test_loss, train_loss = (
        {size: curves(sweep.runs(), size, column).mean(axis=0) for size in (32, 64, 128, 256)}
        for column in ("test_accuracy", "test_loss", "train_loss")
    )  # of each batch size, by epoch: the mean of its seeds
    for size in accuracy:
        assert 0.75 <= accuracy[size][-1] <= 0.95
        assert train_loss[size][-1] < train_loss[size][0]
    middle = len(test_loss[32]) // 2
    assert test_loss[32][middle] < test_loss[64][middle] < test_loss[256][middle]
    assert accuracy[32][:middle].mean() > accuracy[256][:middle].mean() + 0.05


def curves(runs: list[Run], batch_size: int, column: str) -> NDArray[np.float64]:
    """Returns a column of the runs with a batch size, (seeds, epochs)."""
    found = []
    for run in runs:
        if run.config().batch_size == batch_size:
            with run.metrics_file.open(newline="") as rows:
                found.append([float(row[column]) for row in csv.DictReader(rows)])
    return np.array(found)


def test_a_second_demo_trains_nothing_again(offline_demo: tuple[Path, str]) -> None:
    """It finds the backbone and the runs of the first."""
    folder, _ = offline_demo
    (weights,) = folder.glob("demo/weights/*.safetensors")
    before = weights.stat().st_mtime_ns
    output = run_offline(folder)
    assert "no internet: using the ResNet18 that an earlier demo pretrained here" in output
    assert "not repeated" in output
    assert weights.stat().st_mtime_ns == before


def test_shapes_are_the_same_for_one_seed() -> None:
    """One seed, one picture, of every kind."""
    for kind in range(len(KINDS)):
        first, second, other = (
            draw_shape(np.random.default_rng(seed), kind, 32) for seed in (1, 1, 2)
        )
        assert first.shape == (32, 32, 3)
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)


def test_pretraining_is_the_same_each_time_and_marked(tmp_path: Path) -> None:
    """One seed gives one digest, and torch's own random numbers stay where they were."""
    before = torch.get_rng_state()
    made = [pretrain(tmp_path / name, num_updates=2) for name in ("a.st", "b.st")]
    assert made[0].sha256 == made[1].sha256
    assert torch.equal(torch.get_rng_state(), before)
    assert (made[0].kind, made[0].backbone.preprocessing.crop) == ("demo", SIDE)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of one tiny run, on a backbone that was trained for a moment."""
    small = {"TRAIN": 6, "TEST": 3, "EPOCHS": 1, "BATCH_SIZES": (4,), "SEEDS": (0,)}
    for name, value in small.items():
        monkeypatch.setattr(command, f"DEMO_{name}", value)
    monkeypatch.setattr(pretrain_module, "pretrain", lambda path: pretrain(path, num_updates=1))


@pytest.mark.usefixtures("quick")
def test_other_reasons_are_named_and_fetched_weights_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that differs from the published one is called that; the right one replaces ours."""
    tensors = load_file(pretrain(tmp_path / "made.st", num_updates=1).path)
    arrays = {name: tensors[name] for name in tensors if not name.endswith(COUNTER)}
    content = write_old_layout(tmp_path / "made.pth", arrays).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"/resnet18-{digest[:8]}.pth"
    with serving(Site(files={name: content[::-1]})) as site:
        url = site.base + name
        published = replace(DEFAULT, url=url, sha256=digest, size_bytes=len(content))
        monkeypatch.setattr(fetch_module, "DEFAULT", published)
        monkeypatch.setattr(fetch_module, "BACKBONES", {published.name: published})
        differing = run_demo(tmp_path)
        site.files[name] = content
        fetched = run_demo(tmp_path)

    assert "another file" in differing
    assert "no internet" not in differing
    assert "pretrained ResNet18 here for" in differing
    assert url in fetched
    assert "A demo:" not in fetched
    assert read_weights_info(tmp_path / "demo/weights/resnet18.safetensors").kind == "fetched"


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    """Nothing is drawn, fetched or pretrained for a folder that can hold no weights."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/weights").touch()
    result = CliRunner().invoke(cli, ["demo", "--folder", str(tmp_path / "demo")])
    assert "cannot write there" in str(result.exception)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["weights"]


def run_demo(folder: Path) -> str:
    """Returns what `skinjob demo` prints."""
    result = CliRunner().invoke(cli, ["demo", "--folder", str(folder / "demo")])
    assert result.exit_code == 0, result.output
    return result.output
