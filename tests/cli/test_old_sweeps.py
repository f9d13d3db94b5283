"""A sweep of an older skinjob can still be listed, shown, continued and reported."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from commands import skinjob
from fixed_weights import write_fixed_weights
from trees import CLOCKS

from skinjob.sweeps.layout import Run, Sweep

OLD = Path(__file__).parent / "data/501842b/project"
MADE_IN = "/tmp/skinjob-501842b/project"
FIRST, CANCELLED, FAILED, LAST = (
    f"bs{size:04d}-lr0.01-seed{seed}" for size in (4, 8) for seed in (0, 1)
)
OPTIONS = "--cluster local --device cpu --precision fp32 --lr 0.01 --epochs 12 --batch-sizes 4"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the images and sweeps of commit 501842b, as if they had been made in it."""
    project = tmp_path / "project"
    shutil.copytree(OLD, project)
    for file in [project / "runs/old/sweep.json", *project.glob("runs/old/*/config.json")]:
        file.write_text(file.read_text().replace(MADE_IN, str(project)))
    (project / "runs/old/submission").chmod(0o700)
    shutil.rmtree(project / "runs/whole")  # it has only the numbers of an uninterrupted run
    return project


def rows_of(metrics: Path) -> list[dict[str, str]]:
    """Returns the rows of a metrics.csv, without clocks and the sweep's name."""
    with metrics.open(newline="") as lines:
        return [
            {name: text for name, text in row.items() if name not in (*CLOCKS, "sweep")}
            for row in csv.DictReader(lines)
        ]


def test_an_old_sweep_is_listed_and_shown(project: Path) -> None:
    """Its runs are still done, failed or cancelled, in the words of today."""
    listed = skinjob("list", cwd=project).stdout.splitlines()
    assert listed[1].startswith("old    2026-11-26 ")
    assert "head, batch sizes 4,8, 2 seeds, 12 epochs" in listed[1]
    assert "2 done, 1 failed, 1 cancelled" in listed[1]
    result = skinjob("status", "old", "--json", cwd=project)
    assert result.returncode == 1, result.stderr
    runs = {run["run"]: run for run in json.loads(result.stdout)["runs"]}
    assert [(run["status"], run["failure"], run["epoch"]) for run in runs.values()] == [
        ("done", None, 12),
        ("cancelled", None, 6),
        ("failed", "killed", 3),
        ("done", None, 12),
    ]
    assert "was killed" in runs[FAILED]["reason"]
    assert runs[FAILED]["fix"].startswith("skinjob retry ")
    shown = skinjob("status", "old", cwd=project).stdout
    assert f"{FAILED}: killed\n" in shown
    assert f"{CANCELLED}: " not in shown
    assert "view 3 computed" in skinjob("logs", f"old/{FAILED}", cwd=project).stdout


def test_an_old_sweep_is_reported(project: Path) -> None:
    """The report has the numbers of the old report, and lists the cancelled and the failed run."""
    summary = project / "runs/old/report/summary.csv"
    before = list(csv.DictReader(summary.read_text().splitlines()))
    result = skinjob("report", "old", cwd=project)
    assert result.returncode == 0, result.stderr
    assert f"missing: {CANCELLED}: cancelled with 6 of 12 epochs\n" in result.stdout
    assert f"missing: {FAILED}: failed (killed) with 3 of 12 epochs: process " in result.stdout
    after = list(csv.DictReader(summary.read_text().splitlines()))
    assert [{name: row[name] for name in before[0]} for row in after] == before


@pytest.mark.train
def test_old_runs_continue_where_they_stopped(project: Path) -> None:
    """A cancelled run and a failed run keep the rows of their old epochs, and go on to the last.

    The crops of later epochs are drawn in another way than then, so their rows are others.
    """
    write_fixed_weights(project / "weights/resnet18.safetensors")
    kept = {name: rows_of(project / f"runs/old/{name}/metrics.csv") for name in (CANCELLED, FAILED)}
    retried = skinjob("retry", "old", CANCELLED, FAILED, "--wait", cwd=project)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    sweep = Sweep(project / "runs/old")
    for name, epochs in ((CANCELLED, 6), (FAILED, 3)):
        run = Run(sweep.folder / name)
        assert (run.state().status, run.state().resumed_epoch) == ("done", epochs)
        rows = rows_of(run.metrics_file)
        old = kept[name]
        assert [{column: row[column] for column in old[0]} for row in rows[:epochs]] == old
        assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
        then = rows_of(OLD / f"runs/whole/{CANCELLED}/metrics.csv")
        assert abs(float(rows[-1]["train_loss"]) - float(then[-1]["train_loss"])) < 0.1


@pytest.mark.slow
def test_the_old_options_find_the_old_sweep(project: Path) -> None:
    """A submit with the old options continues the old sweep without naming it.

    A submit with another recipe does not.
    """
    write_fixed_weights(project / "weights/resnet18.safetensors")
    words = (*OPTIONS.split()[:-1], "4,8", "--seeds", "0,1")
    result = skinjob("submit", *words, "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "sweep    runs/old  (exists, continues)" in result.stdout
    other = skinjob("submit", *words, "--schedule", "cosine", "--dry-run", cwd=project)
    assert "exists, continues" not in other.stdout
