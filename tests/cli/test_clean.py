"""`skinjob clean`: what it shows, what it removes and what it never touches."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from commands import refusal, skinjob
from sweep_maker import draw_sweep

from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import RunState

SECOND = "bs0064-lr0.01-seed0"
FAILED = RunState(status="failed", failure="killed", reason="it was killed", epoch=3)
AT_WORK = RunState(status="running", host="elsewhere", epoch=3)


def fill(file: Path, num_bytes: int = 50_000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.urandom(num_bytes))
    return file


def make_runs(project: Path, state: RunState = FAILED) -> Sweep:
    """Makes a sweep with a done run and a run in *state*, with all files that jobs leave."""
    sweep = draw_sweep(project / "runs/s", batch_sizes=(32, 64), states={SECOND: state})
    for run in sweep.runs():
        fill(run.folder / ".state.json.x.part")
    fill(sweep.runs()[1].checkpoint_files[0])
    fill(sweep.runs()[1].checkpoint_files[1])
    for name in ("12_0_0_log.out", "12_0_submitted.pkl", "12_1_0_log.out", "12_submission.sh"):
        fill(sweep.submission_folder / name, 5_000)
    (sweep.submission_folder / "link.sh").symlink_to(sweep.submission_folder / "12_submission.sh")
    fill(project / "runs/.cache/views/0.safetensors")
    fill(project / "runs/.cache/views/.1.safetensors.x.part")
    fill(project / "runs/.cache/decoded/0-000.pixels")
    fill(project / "runs/.cache/compiled/a/b/code.so")
    return sweep


def du(folder: Path) -> int:
    """Returns the bytes that a folder takes on the disk, as `du` counts them."""
    output = subprocess.check_output(["du", "--summarize", "--block-size=1", folder], text=True)
    return int(output.split()[0])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def removed(output: str, words: str) -> int:
    """Returns the number of bytes in the line of the output that begins with *words*."""
    (line,) = [line for line in output.splitlines() if line.startswith(words)]
    return int(line.removeprefix(words).split()[0].replace(",", ""))


@pytest.mark.slow
def test_clean_frees_as_many_bytes_as_it_shows(tmp_path: Path) -> None:
    """`clean` counts bytes as `du` does; without --yes it removes nothing."""
    make_runs(tmp_path)
    before, there = du(tmp_path / "runs"), files(tmp_path)
    shown = skinjob("clean", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert files(tmp_path) == there
    done = skinjob("clean", "--yes", cwd=tmp_path)
    num_bytes = removed(done.stdout, "removed: ")
    assert num_bytes == removed(shown.stdout, "would remove: ") > 300_000
    assert before - du(tmp_path / "runs") == num_bytes
    left = files(tmp_path / "runs")
    assert {path for path in left if "bs0" not in path} == {
        f".submit-{os.geteuid()}.lock",
        "s/sweep.json",
        "s/submission/12_1_0_log.out",  # status shows this output of the failed run's job
    }
    assert {f"s/{SECOND}/{name}" for name in ("config.json", "state.json", "metrics.csv")} < left
    assert "nothing to remove" in skinjob("clean", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("--caches", {"runs/.cache/"}),
        ("--failed", {"checkpoint", ".part"}),
        ("--submission", {"12_0_", "12_submission", "link"}),
    ],
)
def test_an_option_removes_its_kind_of_files_only(
    tmp_path: Path, kind: str, gone: set[str]
) -> None:
    """A user who removes the caches keeps the checkpoints, and so on."""
    make_runs(tmp_path)
    before = files(tmp_path)
    skinjob("clean", kind, "--yes", cwd=tmp_path)
    for file in before - files(tmp_path):
        assert any(word in file for word in gone), file
    assert all(any(word in file for file in before - files(tmp_path)) for word in gone)


def test_sweeps_and_caches_in_use_are_left_alone(tmp_path: Path) -> None:
    """A run on another machine keeps its files and the views that it may read next."""
    sweep = make_runs(tmp_path, AT_WORK)
    sweep.runs()[1].update_state()  # a heartbeat
    draw_sweep(tmp_path / "runs/over", batch_sizes=(32,))
    spare = fill(tmp_path / "runs/over/submission/7_0_log.out")
    before = files(tmp_path / "runs/s") | files(tmp_path / "runs/.cache")
    result = skinjob("clean", "--yes", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "runs/s") | files(tmp_path / "runs/.cache") == before
    assert not spare.exists()
    assert "left alone: runs/s: 1 run waiting or running" in result.stdout
    assert "left alone: runs/.cache: runs that use it are waiting or running" in result.stdout


def test_clean_of_a_sweep_leaves_the_shared_caches(tmp_path: Path) -> None:
    """If a sweep is named, only its own files are removed."""
    make_runs(tmp_path)
    skinjob("clean", "s", "--yes", cwd=tmp_path)
    assert files(tmp_path / "runs/.cache")
    assert not (tmp_path / f"runs/s/{SECOND}/checkpoint.pt").exists()


def test_a_cancelled_run_keeps_its_checkpoints(tmp_path: Path) -> None:
    """A cancelled run can still continue after its last epoch, as `cancel` says."""
    cancelled = RunState(status="cancelled", epoch=3)
    sweep = make_runs(tmp_path, cancelled)
    skinjob("clean", "--yes", cwd=tmp_path)
    assert all(file.exists() for file in sweep.runs()[1].checkpoint_files)


def test_a_missing_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    """A typing mistake in --runs is an error and leaves no folder behind."""
    result = skinjob("clean", "--runs", "rnus", "--yes", cwd=tmp_path)
    assert refusal(result) == "--runs rnus: no such folder"
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A cache or run that is a link to another place is not emptied."""
    sweep = make_runs(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "runs/.cache").rename(elsewhere)
    (tmp_path / "runs/.cache").symlink_to(elsewhere)
    second = sweep.runs()[1].folder
    second.rename(tmp_path / "run")
    second.symlink_to(tmp_path / "run")
    before = files(elsewhere), files(tmp_path / "run")
    result = skinjob("clean", "--yes", cwd=tmp_path)
    assert (files(elsewhere), files(tmp_path / "run")) == before
    assert "left alone: runs/.cache: it is a link to another place" in result.stdout


def test_a_cache_that_others_use_is_left_alone(tmp_path: Path) -> None:
    """Another user's jobs may be using the views in it."""
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    make_runs(tmp_path)
    os.chown(tmp_path / "runs/.cache/views/0.safetensors", 12345, 12345)
    before = files(tmp_path / "runs/.cache")
    result = skinjob("clean", "--yes", cwd=tmp_path)
    assert files(tmp_path / "runs/.cache") == before
    assert "left alone: runs/.cache: other users have files in it" in result.stdout
