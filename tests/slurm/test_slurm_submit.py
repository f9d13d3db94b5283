"""`skinjob submit` on a real SLURM with fake GPUs, behind an air gap."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

from cluster import Slurm
from commands import only_sweep, refusal

from skinjob.sweeps.layout import Run, Sweep, sweeps

CHEAP = ("--device", "cpu", "--cpus", "1", "--mem", "2")
SMALL = ("--batch-sizes", "2,4,8,16", "--epochs", "2", *CHEAP)


def wait_for_end(slurm: Slurm, sweep: Sweep) -> None:
    slurm.wait(",".join({job.split("_")[0] for job in sweep.info().jobs.values()}), timeout_s=180)


def states(sweep: Sweep) -> dict[str, str]:
    return {run.name: run.state().status for run in sweep.runs()}


def test_one_array_with_a_task_per_batch_size(slurm: Slurm, project: Path) -> None:
    """The main promise: one command, one array, a CSV per batch size, and no network."""
    dry = slurm.skinjob("submit", *SMALL, "--name", "s", "--dry-run", cwd=project)
    assert dry.returncode == 0, dry.stderr
    assert not (project / "runs").exists()

    result = slurm.skinjob("submit", *SMALL, "--name", "s", cwd=project)
    assert result.returncode == 0, result.stderr
    sweep = Sweep(project / "runs/s")
    jobs = sweep.info().jobs
    array = jobs["bs0002-lr0.01-seed0"].split("_")[0]
    assert list(jobs.values()) == [f"{array}_{task}" for task in range(4)]
    assert all(job in result.stdout for job in jobs.values())

    (script,) = sweep.submission_folder.glob("*_submission.sh")
    assert script.read_text() in dry.stdout + "\n"

    wait_for_end(slurm, sweep)
    assert set(states(sweep).values()) == {"done"}
    for run in sweep.runs():
        with run.metrics_file.open(newline="") as rows:
            assert [row["epoch"] for row in csv.DictReader(rows)] == ["1", "2"]
        assert run.state().job_id == jobs[run.name]
    assert sum(run.state().views_computed for run in sweep.runs()) == 3

    again = slurm.skinjob("submit", *SMALL, cwd=project)
    assert again.stdout.count("not repeated") == 4
    assert sweep.info().jobs == jobs


def test_learning_rates_and_seeds_share_the_task_of_their_batch_size(
    slurm: Slurm, project: Path
) -> None:
    """A grid of eight runs is an array of two tasks, and each view is computed once."""
    grid = ("--batch-sizes", "4,8", "--lr", "0.01,0.1", "--seeds", "0-1", "--epochs", "2")
    result = slurm.skinjob(
        "submit", *grid, "--device", "cpu", "--cpus", "1", "--mem", "2", cwd=project
    )
    assert result.returncode == 0, result.stderr
    sweep = only_sweep(project / "runs")
    jobs = sweep.info().jobs
    array = jobs["bs0004-lr0.01-seed0"].split("_")[0]
    assert len(jobs) == 8
    for name, job in jobs.items():
        assert job == f"{array}_{0 if name.startswith('bs0004') else 1}"
    wait_for_end(slurm, sweep)
    assert set(states(sweep).values()) == {"done"}
    assert sum(run.state().views_computed for run in sweep.runs()) == 3


def test_every_task_asks_for_one_gpu(slurm: Slurm, project: Path) -> None:
    """SLURM gives each task one GPU; a GPU that torch cannot see is an error.

    The GPUs are fakes, so a job can only show here that it got a GPU and stopped because torch
    cannot see it.
    """
    result = slurm.skinjob(
        "submit", "--batch-sizes", "4,8", "--cpus", "1", "--mem", "2", cwd=project
    )
    assert result.returncode == 0, result.stderr
    assert "cuda (auto: a GPU is asked for)" in result.stdout
    sweep = only_sweep(project / "runs")
    array = sweep.info().jobs["bs0004-lr0.01-seed0"].split("_")[0]
    details = slurm.run(["scontrol", "show", "job", array], check=True).stdout
    assert details.count("TresPerNode=gres:gpu:1\n") == details.count(" ArrayJobId=") >= 1
    wait_for_end(slurm, sweep)
    for run in sweep.runs():
        state = run.state()
        assert state.status == "failed"
        assert "torch sees no GPU" in str(state.reason)
        assert "CUDA_VISIBLE_DEVICES='" in str(state.reason)
        assert "CUDA_VISIBLE_DEVICES=None" not in str(state.reason)


def test_a_refusal_of_sbatch_is_an_error_and_leaves_nothing(slurm: Slurm, project: Path) -> None:
    """The error has sbatch's own words, and there is no folder to clean up."""
    result = slurm.skinjob("submit", *SMALL, "--partition", "nowhere", cwd=project)
    assert refusal(result) == "sbatch refused: invalid partition specified: nowhere"
    assert not sweeps(project / "runs")


def test_another_python_starts_the_tasks_of_an_array(slurm: Slurm, project: Path) -> None:
    """--python works for arrays too: the job's script names that Python."""
    link = project / "other-python"
    link.write_text(f'#!/bin/sh\nexport SEEN=yes\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    small = ("--batch-sizes", "4,8", "--epochs", "1", *CHEAP)
    result = slurm.skinjob("submit", *small, "--python", link, cwd=project)
    assert result.returncode == 0, result.stderr
    sweep = only_sweep(project / "runs")
    (script,) = sweep.submission_folder.glob("*_submission.sh")
    assert f"{link} -u -m skinjob.submit.start" in script.read_text()
    wait_for_end(slurm, sweep)
    assert set(states(sweep).values()) == {"done"}


def test_a_submit_queues_a_killed_run_again_and_says_why_it_ended(
    slurm: Slurm, project: Path
) -> None:
    """A killed job cannot write why it ended; the next submit prints it."""
    long = ("--batch-sizes", "4", "--epochs", "3000", *CHEAP)
    assert slurm.skinjob("submit", *long, cwd=project).returncode == 0
    run = only_sweep(project / "runs").runs()[0]
    job = run.sweep.info().jobs[run.name]
    wait_until_running(run)
    again = slurm.skinjob("submit", *long, cwd=project)
    assert "not repeated" in again.stdout  # it is running
    slurm.run(["scancel", "--signal=KILL", job], check=True)
    slurm.wait(job)
    _age(run)
    result = slurm.skinjob("submit", *long, cwd=project)
    assert "not repeated" not in result.stdout
    assert f"{run.name} cancelled: job {job} was cancelled by " in result.stdout
    new = run.sweep.info().jobs[run.name]
    assert new != job
    slurm.run(["scancel", "--signal=KILL", new])
    slurm.wait(new)


def test_a_preempted_run_starts_again_and_finishes(slurm: Slurm, project: Path) -> None:
    """A preempted job is requeued with the same id, and its finished views are used again."""
    options = ("--batch-sizes", "4", "--epochs", "250", *CHEAP)
    assert slurm.skinjob("submit", *options, cwd=project).returncode == 0
    run = only_sweep(project / "runs").runs()[0]
    job = run.sweep.info().jobs[run.name]
    wait_until_running(run)
    while not run.state().views_computed:
        time.sleep(0.1)
    slurm.run(["scancel", "--signal=USR2", job], check=True)
    slurm.wait(job, timeout_s=180)
    state = run.state()
    assert (state.status, state.epoch) == ("done", 250)
    assert state.views_read >= 1
    with run.metrics_file.open(newline="") as rows:
        assert [int(row["epoch"]) for row in csv.DictReader(rows)] == list(range(1, 251))


def wait_until_running(run: Run, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while run.state().status != "running":
        assert time.monotonic() < end, run.state()
        time.sleep(0.1)


def _age(run: Run) -> None:
    """Makes the run's heartbeat old, so that the test need not wait until it counts as silent."""
    text = run.state_file.read_text()
    heartbeat = str(run.state().heartbeat_utc)
    run.state_file.write_text(text.replace(heartbeat, "2020-01-01T00:00:00Z"))
