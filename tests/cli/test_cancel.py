"""`skinjob cancel` without SLURM, and what a job does with a cancelled run."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import import_path, only_sweep, skinjob, status_by_run, wait_until
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.local import LocalQueue
from skinjob.submit.cancel import cancel
from skinjob.sweeps.layout import Run, Sweep


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """A local sweep with two runs: the first is done, the second is running on another machine."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    made = make_sweep(data, weights, project / "runs", batch_sizes=(4, 8))
    done, running = made.runs()
    done.update_state(status="done", epoch=2)
    running.update_state(status="running", host="elsewhere", pid=1, holder="somebody", epoch=1)
    return made


@pytest.mark.train
def test_a_local_sweep_is_cancelled(project: Path) -> None:
    """The running run ends, the waiting run never starts, and retry leaves both alone."""
    options = ("--batch-sizes", "4,8", "--epochs", "4000", "--train", "all", "--cluster", "local")
    assert skinjob("submit", *options, cwd=project).returncode == 0
    sweep = only_sweep(project / "runs")
    first, second = sweep.runs()
    wait_until(lambda: first.state().epoch > 0)  # by now it minds signals
    pid = first.state().pid
    assert pid is not None
    os.kill(
        pid, signal.SIGSTOP
    )  # otherwise it may release its run before it gets the signal to end
    result = skinjob("cancel", sweep.name, cwd=project)
    os.kill(pid, signal.SIGCONT)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^bs\S+ +cancelled$", result.stdout, re.M)) == 2
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20)
    LocalQueue().require_free(sweep)  # its queue has ended
    for run in (first, second):
        state = run.state()
        assert (state.status, state.failure, state.reason) == ("cancelled", None, None)
    assert "SIGTERM: leaves" in first.log_file.read_text()
    assert second.state().attempts == 0
    assert set(status_by_run(sweep).values()) == {"cancelled"}
    retried = skinjob("retry", sweep.name, "--dry-run", cwd=project).stdout
    assert "nothing in " in retried


@pytest.mark.train
def test_a_process_releases_a_cancelled_run(sweep: Sweep, project: Path) -> None:
    """A process on any machine reads from the run's folder that it must write no more to it."""
    from skinjob.train.lease import Lease

    running = sweep.runs()[1]
    lease = Lease([running], status="running")
    assert lease.check(running)
    skinjob("cancel", sweep.folder, running.name, cwd=project)
    assert not lease.say(running)
    assert not lease.has(running)
    assert running.state().status == "cancelled"
    assert running.state().epoch == 1


def test_cancel_leaves_a_done_run_alone(sweep: Sweep, project: Path) -> None:
    """`cancel` lists a finished run as left alone; a second `cancel` changes nothing."""
    done, running = sweep.runs()
    before = done.state()
    result = skinjob("cancel", "sweep", cwd=project)
    assert f"{running.name}  cancelled\n" in result.stdout
    assert f"{done.name}  left alone: done" in result.stdout
    assert done.state() == before
    fix = f"skinjob retry {sweep.folder} {running.name}"
    assert running.state().fix == fix
    assert f"back:  {fix}\n" in result.stdout
    cancelled = running.state()
    again = skinjob("cancel", "sweep", cwd=project)
    assert again.returncode == 0, again.stderr
    assert running.state() == cancelled


@pytest.mark.parametrize("state", ["done", "running"])
def test_cancel_respects_a_state_that_is_written_meanwhile(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """A run that ends at that moment is done; a run that only writes a heartbeat is cancelled."""
    running = sweep.runs()[1]
    at_work = running.state()

    def write_state(seconds: float) -> None:
        write_json(running.state_file, asdict(at_work) | {"status": state})

    monkeypatch.setattr("skinjob.submit.cancel.time.sleep", write_state)
    assert cancel(sweep, []).cancelled == ((running.name,) if state == "running" else ())
    assert running.state().status == ("cancelled" if state == "running" else "done")


@pytest.mark.train
def test_a_job_does_not_start_a_cancelled_run(sweep: Sweep, project: Path) -> None:
    """A job that was queued before the cancel and starts after it leaves the run alone."""
    from skinjob.train.job import run_job

    running = sweep.runs()[1]
    skinjob("cancel", "sweep", running.name, cwd=project)
    assert run_job([running.folder], job_id="12_0") == [f"{running.folder} was cancelled"]
    assert running.state().status == "cancelled"
    assert running.state().attempts == 0


@pytest.mark.parametrize(("answer", "is_cancelled"), [("n", False), ("y", True)])
def test_cancel_asks_before_it_cancels_a_whole_sweep(
    sweep: Sweep, project: Path, answer: str, is_cancelled: bool
) -> None:
    """On a terminal, only the answer y cancels: a typing mistake costs no night's work."""
    output = on_a_terminal(f"{answer}\n", "cancel", "sweep", cwd=project)
    assert "1 run of runs/sweep running. Cancel all? [y/N]" in output
    assert (sweep.runs()[1].state().status == "cancelled") == is_cancelled
    assert ("nothing was cancelled" in output) != is_cancelled


@pytest.mark.slow
def test_cancel_does_not_ask_with_yes_or_with_a_run(sweep: Sweep, project: Path) -> None:
    """A user who names a run or gives --yes is not asked again."""
    running = sweep.runs()[1]
    assert "?" not in on_a_terminal("", "cancel", "sweep", running.name, cwd=project)
    assert running.state().status == "cancelled"
    restart(running)
    assert "?" not in on_a_terminal("", "cancel", "sweep", "--yes", cwd=project)
    assert running.state().status == "cancelled"


def restart(run: Run) -> None:
    run.update_state(status="running", failure=None, reason=None, fix=None)


def on_a_terminal(typed: str, *arguments: str, cwd: Path) -> str:
    """Returns the output of `skinjob` on a terminal where *typed* is typed."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    try:
        result = subprocess.run(
            [sys.executable, "-m", "skinjob", *arguments],
            cwd=cwd,
            env=os.environ | import_path(),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return result.stdout + result.stderr
