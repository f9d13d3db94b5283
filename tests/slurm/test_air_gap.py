"""The whole way across the air gap and back, with the real packages, sshd and SLURM."""

from __future__ import annotations

from pathlib import Path

import air_gap
import pytest
import torch
from bundle_maker import PYTHON, make_wheel, served
from cluster import Slurm
from trees import make_tree
from untrained import write_untrained

from skinjob.bundle.resolve import find_project, is_reachable, resolve
from skinjob.bundle.target import CUDA_13, make_target, read_description
from skinjob.bundle.write import Bundle, write_bundle

REGISTRY = "https://pypi.org/simple/pip/"
SUBMIT = "--data ../images.zip --batch-sizes 2,4 --epochs 1 --device cpu --cpus 1 --mem 2"


def make_bundle(way: air_gap.Way) -> Bundle:
    """Writes a bundle for what cluster.txt describes, twice, to the same bytes.

    All packages are real but torch, whose wheels are 3 GB: its wheel here leads to the tests' own
    torch. tests/benchmarks/way.py takes the real wheels along.
    """
    facts = read_description(way.laptop / "cluster.txt", python=PYTHON)
    target, project = make_target(facts, {"python": PYTHON, "is_cpu": True}), find_project()
    weights = write_untrained(way.laptop / "weights/resnet18.safetensors")
    packages, lock = resolve(target, CUDA_13, project, extras=())
    link = {"torch-of-the-tests.pth": f"{Path(torch.__file__).parents[1]}\n".encode()}
    wheel = make_wheel(way.laptop, "torch", torch.__version__.partition("+")[0], link)
    with served(wheel) as wheels:
        made, again = (
            write_bundle(
                way.laptop / "skinjob-bundle",
                target,
                CUDA_13,
                [*packages, *wheels],
                lock,
                project,
                weights,
            )
            for _ in range(2)
        )
    assert again == made, "so the digest is the same, too"
    return made


def test_a_bundle_crosses_and_a_report_comes_back(slurm: Slurm, tmp_path: Path) -> None:
    """Without a network: install, train on SLURM, report; the report is the same on the laptop."""
    if not is_reachable(REGISTRY):
        pytest.skip(f"{REGISTRY} cannot be reached from here")
    with air_gap.air_gap(tmp_path, slurm, lambda *_: None) as way:
        before = way.attempts()
        air_gap.describe(way)
        made = make_bundle(way)
        air_gap.carry(way)
        make_tree(way.laptop / "skin_cancer", num_train=4, num_test=2)
        air_gap.carry_images(way)
        printed = air_gap.install(way)
        assert f"digest  {made.sha256} " in printed
        assert "\nok      a training and its report on the CPU " in printed
        installed = list((way.home / "site").rglob("*"))
        assert 0.8 * made.room_files < len(installed) < made.room_files
        assert sum(path.lstat().st_size for path in installed) < made.room_bytes
        air_gap.train(way, SUBMIT)
        assert way.attempts() == before
        assert air_gap.control(way) >= 2, "an attempt would have been counted"
        air_gap.bring_back(way)
        assert air_gap.differences(way) == []
