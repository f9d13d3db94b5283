"""`skinjob cancel` without SLURM, and what a job does with a run that was cancelled."""

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
    """A local sweep with a run that is done, and one at work on another machine."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    made = make_sweep(data, weights, project / "runs", batch_sizes=(4, 8))
    done, running = made.runs()
    done.update_state(status="done", epoch=2)
    running.update_state(status="running", host="elsewhere", pid=1, holder="somebody", epoch=1)
    return made


@pytest.mark.train
def test_a_local_sweep_is_cancelled(project: Path) -> None:
    """The run at work ends, those that wait never begin, and retry leaves both alone."""
    options = ("--batch-sizes", "4,8", "--epochs", "400", "--train", "all", "--cluster", "local")
    assert skinjob("submit", *options, cwd=project).returncode == 0
    sweep = only_sweep(project / "runs")
    first, second = sweep.runs()
    wait_until(lambda: first.state().status == "running")
    pid = first.state().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # else it may let go of its run before it is told to end
    result = skinjob("cancel", sweep.name, cwd=project)
    os.kill(pid, signal.SIGCONT)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^bs\S+ +cancelled$", result.stdout, re.M)) == 2
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20)
    LocalQueue().require_free(sweep)  # its queue has nothing left to do
    for run in (first, second):
        state = run.state()
        assert (state.status, state.failure, state.reason) == ("cancelled", None, None)
    assert "SIGTERM: leaves" in first.log_file.read_text()
    assert second.state().attempts == 0
    assert set(status_by_run(sweep).values()) == {"cancelled"}
    told = skinjob("retry", sweep.name, "--dry-run", cwd=project).stdout
    assert "nothing in " in told


@pytest.mark.train
def test_a_process_lets_go_of_a_run_that_was_cancelled(sweep: Sweep, project: Path) -> None:
    """Its folder says so, and the process, wherever it is, writes no more to it."""
    from skinjob.train.lease import Lease

    running = sweep.runs()[1]
    lease = Lease([running], status="running")
    assert lease.check(running)
    skinjob("cancel", sweep.folder, running.name, cwd=project)
    assert not lease.say(running)
    assert not lease.has(running)
    assert running.state().status == "cancelled"
    assert running.state().epoch == 1


def test_what_is_done_stays_done(sweep: Sweep, project: Path) -> None:
    """A finished run cannot be called off, and is told apart; a second time there is nothing."""
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
def test_a_run_that_speaks_just_then_is_heard(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """One that ended in that moment is done; one whose heartbeat came over it is cancelled."""
    running = sweep.runs()[1]
    at_work = running.state()

    def speak(seconds: float) -> None:
        write_json(running.state_file, asdict(at_work) | {"status": state})

    monkeypatch.setattr("skinjob.submit.cancel.time.sleep", speak)
    assert cancel(sweep, []).cancelled == ((running.name,) if state == "running" else ())
    assert running.state().status == ("cancelled" if state == "running" else "done")


@pytest.mark.train
def test_a_job_does_not_begin_on_a_run_that_was_cancelled(sweep: Sweep, project: Path) -> None:
    """It may have been queued before, and start after; `train` by hand still takes the run."""
    from skinjob.train.job import run_job

    running = sweep.runs()[1]
    skinjob("cancel", "sweep", running.name, cwd=project)
    assert run_job([running.folder], job_id="12_0") == [f"{running.folder} was cancelled"]
    assert running.state().status == "cancelled"
    assert running.state().attempts == 0


@pytest.mark.parametrize(("answer", "is_cancelled"), [("n", False), ("y", True)])
def test_a_person_is_asked_before_a_whole_sweep_is_cancelled(
    sweep: Sweep, project: Path, answer: str, is_cancelled: bool
) -> None:
    """A slip of the hand costs no night's work."""
    said = on_a_terminal(f"{answer}\n", "cancel", "sweep", cwd=project)
    assert "1 run of runs/sweep running. Cancel all? [y/N]" in said
    assert (sweep.runs()[1].state().status == "cancelled") == is_cancelled
    assert ("nothing was cancelled" in said) != is_cancelled


@pytest.mark.slow
def test_nobody_is_asked_with_yes_or_a_run_s_name(sweep: Sweep, project: Path) -> None:
    """Whoever names a run, or says yes, means it."""
    running = sweep.runs()[1]
    assert "?" not in on_a_terminal("", "cancel", "sweep", running.name, cwd=project)
    assert running.state().status == "cancelled"
    take_up(running)
    assert "?" not in on_a_terminal("", "cancel", "sweep", "--yes", cwd=project)
    assert running.state().status == "cancelled"


def take_up(run: Run) -> None:
    run.update_state(status="running", failure=None, reason=None, fix=None)


def on_a_terminal(typed: str, *arguments: str, cwd: Path) -> str:
    """Returns what `skinjob` says on a terminal at which this is typed."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    try:
        said = subprocess.run(
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
    return said.stdout + said.stderr
