"""Pairs of images that a sweep's features take for the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, skinjob
from safetensors.numpy import save_file
from trees import make_sweep, make_tree

from skinjob.data.images import Split
from skinjob.data.scan import scan
from skinjob.sweeps.layout import Sweep

SPLITS = (Split.TRAIN, Split.TEST)


@pytest.fixture
def sweep(tmp_path: Path, weights: Path) -> Sweep:
    """A sweep of 40 images with two views each; two of them have nearly the same features."""
    data = make_tree(tmp_path / "data", num_train=15, num_test=5)
    sweep, images = make_sweep(data, weights, tmp_path / "runs"), scan(data)
    sweep.views_folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    means = {split: draws.normal(size=(len(images.split(split)), 8)) for split in SPLITS}
    means[Split.TEST][3] = means[Split.TRAIN][7]
    for split, mean in means.items():
        for number in range(2):
            about = {
                "images": images.fingerprint(split),
                "weights": sweep.info().weights.sha256,
            }
            features = (mean + 0.01 * draws.normal(size=mean.shape)).astype(np.float32)
            save_file(
                {"features": features},
                sweep.views_folder / f"{split.value}{number}.safetensors",
                about,
            )
    return sweep


def audited(sweep: Sweep, *words: str) -> str:
    data = str(sweep.folder.parents[1] / "data")
    words = ("audit", data, "--sweep", str(sweep.folder), *words)
    return skinjob(*words, cwd=sweep.folder, code=0).stdout


def test_a_pair_with_the_same_features_comes_first(sweep: Sweep, tmp_path: Path) -> None:
    """It is in the terminal, in the JSON and on the contact sheet, and it is not a copy."""
    images = scan(tmp_path / "data")
    train, test = images.split(Split.TRAIN)[7].path, images.split(Split.TEST)[3].path
    shown = audited(sweep).split("Alike by features")[1].splitlines()
    assert shown[2].split()[:2] == [train, test]
    result = json.loads(audited(sweep, "--json", "--contact-sheet", str(tmp_path / "s.html")))
    first, *others = result["alike_by_features"]
    assert (first["first"], first["second"]) == (train, test)
    assert first["alike"] > 0.99 > others[0]["alike"]
    assert len({(pair["first"], pair["second"]) for pair in others}) == 19
    assert test not in result["test_in_train"]
    assert "<h2>Alike by features</h2>" in (tmp_path / "s.html").read_text()


def test_features_of_other_weights_or_images_do_not_count(sweep: Sweep, tmp_path: Path) -> None:
    """Without features of these images the command says so, before it shows anything."""
    for file in sweep.views_folder.iterdir():
        save_file({"features": np.ones((30, 8), np.float32)}, file, {"images": "?", "weights": "?"})
    refused = skinjob("audit", "data", "--sweep", str(sweep.folder), cwd=tmp_path)
    assert "has no features of these images" in refusal(refused)
    assert refused.stdout == ""
