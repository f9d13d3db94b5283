"""A sweep.json that is incomplete, damaged or of a newer skinjob."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import recorded, skinjob
from sweep_maker import draw_sweep
from trees import make_sweep

from skinjob.sweeps.layout import Sweep

DAMAGES = {
    "cut": '{"runs": [',
    "another type": '{"runs": 5, "recipe": {"epochs": 2}}',
    "no runs": '{"recipe": {"epochs": 2}}',
    "newer": '{"format": 99, "runs": []}',
}


@pytest.fixture
def sweep(project: Path) -> Sweep:
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    return make_sweep(data, weights, project / "runs", batch_sizes=(4,))


def test_status_and_clean_work_on_a_sweep_without_jobs(tmp_path: Path) -> None:
    """An optional key that is missing from sweep.json is not an error."""
    sweep = draw_sweep(tmp_path / "runs/s", batch_sizes=(32,), epochs=2)
    info = recorded(sweep)
    del info["jobs"]
    sweep.sweep_file.write_text(json.dumps(info))
    shown = skinjob("status", "s", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "1 run: 1 done" in shown.stdout
    assert skinjob("clean", cwd=tmp_path).stdout == "nothing to remove\n"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_sweep_stops_no_command_on_other_sweeps(
    project: Path, sweep: Sweep, damage: str
) -> None:
    """Commands name the damaged sweep and the reason, and work on the other sweep."""
    broken = project / "runs/broken/sweep.json"
    broken.parent.mkdir()
    broken.write_text(DAMAGES[damage])
    listed = skinjob("list", cwd=project)
    assert listed.returncode == 0, listed.stderr
    assert "broken  " in listed.stdout
    assert "broken/sweep.json" in listed.stdout
    assert "1 lost" in listed.stdout  # no submit is running that could give it a job
    words = ("--cluster", "local", "--device", "cpu", "--precision", "fp32", "--epochs", "2")
    grid = (*words, "--lr", "0.1", "--batch-sizes", "4", "--dry-run")
    for name in ((), ("--name", "sweep")):
        planned = skinjob("submit", *grid, *name, cwd=project)
        assert planned.returncode == 0, planned.stderr
        assert "runs/sweep  (exists, continues)" in planned.stdout
    other = skinjob("submit", *grid, "--schedule", "cosine", cwd=project)
    assert other.returncode == 0, other.stderr
    assert re.search(r"^note +ignored: .*runs/broken", other.stdout, re.M)
    assert skinjob("status", "sweep", cwd=project).stdout.startswith("sweep runs/sweep\n")
    assert "left alone: runs/broken: " in skinjob("clean", cwd=project).stdout
