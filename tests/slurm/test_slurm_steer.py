"""`skinjob cancel` and `skinjob retry` on a real SLURM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from cluster import Slurm, running_slurm
from commands import recorded, refusal, wait_until
from sweep_maker import draw_sweep
from trees import left, make_tree

from skinjob.files import write_json
from skinjob.sweeps.layout import Sweep

LONG_AGO = "2020-01-01T00:00:00Z"
SMALL = ("--batch-sizes", "4", "--device", "cpu", "--cpus", "1", "--mem", "2")


def queued(slurm: Slurm) -> dict[str, str]:
    """Returns the time limits of the jobs that wait or run, by their ids."""
    listed = slurm.run(["squeue", "-h", "--array", "--states=PD,R", "-o", "%i %l"], check=True)
    return dict(line.split() for line in listed.stdout.splitlines())


@contextlib.contextmanager
def nothing_starts(slurm: Slurm) -> Iterator[None]:
    """Makes all jobs wait, as on a full cluster."""
    partition = ["scontrol", "update", "partitionname=lab"]
    slurm.run([*partition, "state=down"], check=True)
    try:
        yield
    finally:
        slurm.run([*partition, "state=up"], check=True)


def test_waiting_runs_are_cancelled_and_retried_with_more_time(slurm: Slurm, project: Path) -> None:
    """`cancel` ends all jobs of an array, also held jobs; `retry` queues a named run again.

    The project is reached through a link, as home folders often are.
    """
    home = project / "home"
    home.symlink_to(project)
    grid = (*SMALL[2:], "--batch-sizes", "2,4,8", "--seeds", "0-1")
    with nothing_starts(slurm):
        slurm.skinjob("submit", *grid, "--name", "s", "--runs", home / "runs", cwd=home, code=0)
        sweep = Sweep(home / "runs/s")
        first, second, *others = sweep.runs()
        jobs = sweep.info().jobs
        slurm.run(["scontrol", "hold", jobs[first.name]], check=True)
        slurm.skinjob("cancel", sweep.folder, first.name, cwd=home, code=0)
        assert set(queued(slurm)) == set(jobs.values()), "the job still has another run"
        assert "1 cancelled" in slurm.skinjob("status", sweep.folder, cwd=home, code=3).stdout
        output = slurm.skinjob("cancel", sweep.folder, cwd=home, code=0).stdout
        assert not queued(slurm)
        assert f"ending: job {', '.join(sorted(set(jobs.values())))}\n" in output
        assert {run.state().status for run in sweep.runs()} == {"cancelled"}

        assert "nothing in " in slurm.skinjob("retry", sweep.folder, cwd=home, code=0).stdout
        slurm.skinjob("retry", sweep.folder, second.name, "--time", "33", cwd=home, code=0)
        new = sweep.info().jobs
        assert queued(slurm) == {new[second.name]: "33:00"}
        assert {run.name for run in sweep.runs() if new[run.name] != jobs[run.name]} == {
            second.name
        }
        assert sweep.info().cluster.items() >= {"time_min": 33, "cpus": 1}.items()
        script = sweep.submission_folder / f"{new[second.name]}_submission.sh"
        assert "#SBATCH --time=33\n" in script.read_text()
        slurm.skinjob("cancel", sweep.folder, cwd=home, code=0)
    assert not queued(slurm)
    assert {run.state().status for run in (first, second, *others)} == {"cancelled"}


def test_cancel_of_a_run_lets_the_job_s_other_runs_finish(slurm: Slurm, project: Path) -> None:
    """Whether the cancelled run was waiting or running, the job's other runs end as usual.

    After a retry the cancelled runs have the same numbers as uninterrupted runs.
    """
    make_tree(project / "few", num_train=2, num_test=1)
    grid = (*SMALL, "--seeds", "0-2", "--epochs", "240", "--data", "few")
    with nothing_starts(slurm):
        slurm.skinjob("submit", *grid, "--name", "s", cwd=project, code=0)
        sweep = Sweep(project / "runs/s")
        stays, at_work, waiting = sweep.runs()
        slurm.skinjob("cancel", "s", waiting.name, cwd=project, code=0)
    wait_until(lambda: at_work.state().epoch > 0)
    output = slurm.skinjob("cancel", "s", at_work.name, cwd=project, code=0).stdout
    (job,) = set(sweep.info().jobs.values())
    assert f"continues with other runs: job {job}\n" in output
    cancelled_at = at_work.state().epoch
    slurm.wait(job, timeout_s=180)
    assert stays.state().status == "done"
    assert cancelled_at <= at_work.state().epoch < 240, "the job released it"
    assert at_work.state().status == waiting.state().status == "cancelled"
    assert waiting.state().attempts == 0

    slurm.skinjob("retry", "s", at_work.name, waiting.name, cwd=project, code=0)
    slurm.wait(sweep.info().jobs[at_work.name], timeout_s=180)
    assert at_work.state().resumed_epoch >= cancelled_at
    slurm.skinjob("submit", *grid, "--runs", "whole", "--name", "s", cwd=project, code=0)
    whole = Sweep(project / "whole/s")
    slurm.wait(whole.info().jobs[stays.name], timeout_s=180)
    for run, reference in zip(sweep.runs(), whole.runs(), strict=True):
        assert left(run) == left(reference)


@pytest.fixture
def own_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm"), accounting="none") as cluster:
        yield cluster


def test_runs_are_cancelled_while_slurm_does_not_answer(own_slurm: Slurm, project: Path) -> None:
    """The runs are marked as cancelled; the error names the command that ends the job later."""
    with nothing_starts(own_slurm):
        own_slurm.skinjob("submit", *SMALL, "--name", "s", cwd=project, code=0)
        (run,) = Sweep(project / "runs/s").runs()
        job = run.sweep.info().jobs[run.name]
        own_slurm.stop_controller()
        result = own_slurm.skinjob("cancel", "s", cwd=project, code=1)
        assert (
            f"SLURM has not ended job {job} (it does not answer: slurm_load_jobs error"
            in refusal(result)
        )
        assert f"skinjob cancel {run.sweep.folder}" in result.stderr
        assert f"cancelled: {run.name}\n" in result.stdout
        assert run.state().status == "cancelled"
        own_slurm.restart()
        assert set(queued(own_slurm)) == {job}
        again = own_slurm.skinjob("cancel", "s", cwd=project, code=0)
        assert f"ending: job {job}\n" in again.stdout
        assert not queued(own_slurm)


def test_another_job_with_the_same_number_is_left_alone(slurm: Slurm, project: Path) -> None:
    """SLURM may use job ids again, so the script's path must be in the sweep's folder."""
    sweep = draw_sweep(project / "runs/s", batch_sizes=(32,), finished={}, states={})
    (run,) = sweep.runs()
    run.update_state(status="cancelled")
    stranger = slurm.sbatch("sleep 600", cwd=project)
    asked = {"cluster": "slurm", "mem_gb": 1.0, "time_min": 9}
    write_json(sweep.sweep_file, recorded(sweep) | {"jobs": {run.name: stranger}, "cluster": asked})
    slurm.skinjob("cancel", "s", cwd=project, code=0)
    assert stranger in queued(slurm)
    silent = {"status": "running", "failure": None, "reason": None, "heartbeat_utc": LONG_AGO}
    write_json(run.state_file, asdict(run.state()) | silent)
    assert " running " not in slurm.skinjob("status", "s", cwd=project, code=1).stdout
    slurm.run(["scancel", stranger], check=True)
