"""The demo's own backbone: trained on drawn shapes, used on drawn lesions, made once."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from local_server import Site, serving
from safetensors.numpy import load_file
from state_dict_maker import write_old_layout

from skinjob.cli import cli
from skinjob.commands import demo as command
from skinjob.data.shapes import KINDS, draw_shapes
from skinjob.sweeps.layout import sweeps
from skinjob.train import pretrain as pretrain_module
from skinjob.train.pretrain import SIDE, pretrain
from skinjob.weights import fetch as fetch_module
from skinjob.weights.backbones import COUNTER, DEFAULT
from skinjob.weights.file import read_weights_info

NOWHERE = "http://127.0.0.1:9/resnet18-00000000.pth"


def test_shapes_are_the_same_for_one_seed_and_of_all_kinds() -> None:
    """One seed, one set of pictures; every kind as often as the others."""
    pictures, kinds = draw_shapes(24, 32, seed=1)
    assert pictures.shape == (24, 32, 32, 3)
    assert np.bincount(kinds).tolist() == [2] * len(KINDS)
    assert np.array_equal(pictures, draw_shapes(24, 32, seed=1)[0])
    assert not np.array_equal(pictures, draw_shapes(24, 32, seed=2)[0])


def test_pretraining_is_the_same_each_time_and_marked(tmp_path: Path) -> None:
    """One seed gives one digest, and torch's own random numbers stay where they were."""
    before = torch.get_rng_state()
    made = [pretrain(tmp_path / name, num_pictures=48, epochs=1) for name in ("a.st", "b.st")]
    assert made[0].sha256 == made[1].sha256
    assert torch.equal(torch.get_rng_state(), before)
    assert (made[0].kind, made[0].backbone.preprocessing.crop) == ("demo", SIDE)


def test_the_demo_pretrains_once_and_fetched_weights_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without internet it makes a backbone and finds it again; with internet it fetches one."""
    small = {"TRAIN": 6, "TEST": 3, "EPOCHS": 1, "BATCH_SIZES": (4,), "SEEDS": (0,)}
    for name, value in small.items():
        monkeypatch.setattr(command, f"DEMO_{name}", value)
    monkeypatch.setattr(fetch_module, "DEFAULT", replace(DEFAULT, url=NOWHERE))
    made = []

    def quick(path: Path) -> None:
        made.append(pretrain(path, num_pictures=32, epochs=1))

    monkeypatch.setattr(pretrain_module, "pretrain", quick)
    first = run_demo(tmp_path)
    assert "no internet: pretrained ResNet18 here for" in first
    assert first.count("A demo:") == 1
    assert "an earlier demo pretrained" in run_demo(tmp_path)
    assert len(made) == 1
    (sweep,) = sweeps(tmp_path / "demo/runs")
    assert sweep.info()["weights"]["kind"] == "demo"

    tensors = load_file(made[0].path)
    arrays = {name: tensors[name] for name in tensors if not name.endswith(COUNTER)}
    content = write_old_layout(tmp_path / "made.pth", arrays).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with serving(Site(files={f"/resnet18-{digest[:8]}.pth": content})) as site:
        url = f"{site.base}/resnet18-{digest[:8]}.pth"
        published = replace(DEFAULT, url=url, sha256=digest, size_bytes=len(content))
        monkeypatch.setattr(fetch_module, "DEFAULT", published)
        monkeypatch.setattr(fetch_module, "BACKBONES", {published.name: published})
        fetched = run_demo(tmp_path)
    assert url in fetched
    assert "A demo:" not in fetched
    assert read_weights_info(made[0].path).kind == "fetched"


def run_demo(folder: Path) -> str:
    """Returns what `skinjob demo` prints."""
    result = CliRunner().invoke(cli, ["demo", "--folder", str(folder / "demo")])
    assert result.exit_code == 0, result.output
    return result.output
