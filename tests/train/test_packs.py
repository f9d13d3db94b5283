"""Training from a zip, and predictions from a pack: the same numbers as from folders."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import import_path, refusal, skinjob
from trees import left, make_sweep, make_tree

from skinjob.data.pack import pack_images
from skinjob.data.scan import scan
from skinjob.sweeps.layout import Sweep
from skinjob.train.job import run_job


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Sweep, Sweep]:
    """Two trained sweeps on the same images: in a folder, and in a zip."""
    place = tmp_path_factory.mktemp("sweeps")
    data = make_tree(place / "skin", num_train=4, num_test=2)
    pack_images(scan(data), place / "images.zip")
    made = []
    for name, source in (("folder", data), ("zip", place / "images.zip")):
        made.append(make_sweep(source, weights, place / name / "runs", epochs=2))
        run_job([run.folder for run in made[-1].runs()])
    return made[0], made[1]


def test_images_in_a_zip_train_to_the_same_files(sweeps: tuple[Sweep, Sweep]) -> None:
    """Metrics, predictions and heads are equal byte for byte, except for the clocks."""
    folder, packed = sweeps
    assert packed.info().images.fingerprint == folder.info().images.fingerprint
    for here, there in zip(folder.runs(), packed.runs(), strict=True):
        assert left(there) == left(here)


def test_a_pack_predicts_what_the_run_predicted(
    sweeps: tuple[Sweep, Sweep], weights: Path, tmp_path: Path
) -> None:
    """On the laptop, the test images get the probabilities of the run's predictions.csv."""
    sweep = sweeps[0]
    run, root = sweep.runs()[0], Path(sweep.info().images.root)
    skinjob("pack", sweep.folder, "--out", tmp_path / "s.tar", cwd=tmp_path, code=0)
    shutil.copytree(weights.parent, tmp_path / "weights")
    with run.predictions_file.open(newline="") as lines:
        wanted = list(csv.DictReader(lines))
    images = [root / row["image"] for row in wanted]
    words = ("predict", "s.tar", "--run", run.name, "--out", "p.csv")
    done = skinjob(*words, *images, cwd=tmp_path, code=0)
    assert done.stdout.count("research software, not a medical device") == 1
    with (tmp_path / "p.csv").open(newline="") as lines:
        printed = list(csv.DictReader(lines))
    for row, other in zip(wanted, printed, strict=True):
        assert other["predicted"] == row["predicted"]
        assert float(other["p_malignant"]) == pytest.approx(float(row["p_malignant"]), abs=2e-6)
    (tmp_path / "no.jpg").write_text("text")
    refused = skinjob(*words, images[0], "no.jpg", cwd=tmp_path)
    assert refusal(refused) == "no.jpg: not an image of a known format"
    several = skinjob("predict", "s.tar", "no.jpg", cwd=tmp_path)
    assert refusal(several) == "s.tar has 2 runs: --run says which"


def test_a_prediction_says_what_its_weights_are(
    sweeps: tuple[Sweep, Sweep], tmp_path: Path
) -> None:
    """Numbers that say nothing about skin are never printed without these words."""
    sweep = Sweep(shutil.copytree(sweeps[0].folder, tmp_path / "s"))
    info = json.loads(sweep.sweep_file.read_text())
    image = next(Path(info["images"]["root"]).rglob("*.jpg"))
    for kind, words in {
        "untrained": "the weights are untrained: ",
        "demo": "the weights are pretrained on drawn shapes: ",
    }.items():
        info["weights"]["kind"] = kind
        sweep.sweep_file.write_text(json.dumps(info))
        done = skinjob("predict", sweep.runs()[0].folder, image, cwd=tmp_path, code=0)
        assert f"{words}these numbers say nothing about skin\n" in done.stdout


def test_a_prediction_without_torch_says_how_to_get_it(
    sweeps: tuple[Sweep, Sweep], tmp_path: Path
) -> None:
    """The words are those of a submit to this machine."""
    words = ["predict", str(sweeps[0].runs()[0].folder), "a.jpg"]
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        f"from skinjob.cli import main; main({words!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | import_path(),
    )
    assert refusal(done).startswith("predict needs torch, which ")
    assert done.stderr.endswith("pip install 'skinjob[train]'\n")
