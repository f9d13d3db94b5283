"""A submit that is broken off, doubled or not answered: nothing half made stays, nothing is lost.

Interrupts and kills are real, at file operations that are counted.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import import_path, recorded, refusal, skinjob, wait_until
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.base import QueuedJob
from skinjob.queues.slurm.queue import SlurmQueue
from skinjob.status import status as state
from skinjob.sweeps.layout import Sweep, sweeps

SUBMIT = ("submit", "--batch-sizes", "4", "--epochs", "1", "--seeds", "0-2", "--cluster", "local",
          "--device", "cpu", "--name", "n")  # fmt: skip
STOPPED = """
import os, signal, sys
from skinjob.cli import main
count, wanted, number = 0, int(sys.argv[1]), int(sys.argv[2])
def step(event, arguments):
    global count
    if event in ("os.mkdir", "os.rename") and "runs" in str(arguments[0]):
        count += 1
        if count == wanted:
            os.kill(os.getpid(), number)
sys.addaudithook(step)
main(sys.argv[3:])
"""
"""`skinjob`, sent a signal at its n-th file operation in the folder of runs."""


def stopped(at: int, number: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STOPPED, str(at), str(int(number)), *SUBMIT]
    environment = os.environ | import_path()
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.train
@pytest.mark.parametrize("at", [3, 8, 15])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_a_submit_that_is_broken_off_can_be_repeated(project: Path, at: int, number: int) -> None:
    """Wherever a submit ends, the same command goes on, and no half a sweep is seen."""
    result = stopped(at, number, project)
    assert result.returncode in (130, -signal.SIGKILL), result.stderr
    assert all(sweep.sweep_file.exists() for sweep in map(Sweep, (project / "runs").glob("[!.]*")))
    if number == signal.SIGINT:
        assert not list((project / "runs").glob("*n*.part"))
    again = skinjob(*SUBMIT, "--wait", cwd=project)
    assert again.returncode == 0, again.stderr
    (sweep,) = sweeps(project / "runs")
    assert [run.state().status for run in sweep.runs()] == ["done"] * 3
    assert not list((project / "runs").glob(".*.part"))


@pytest.mark.train
def test_two_submits_of_one_name_make_one_sweep(project: Path) -> None:
    """The second waits for the first, says so, and finds what it has queued."""
    lock = project / "runs" / f".submit-{os.geteuid()}.lock"
    lock.parent.mkdir()
    command = [sys.executable, "-m", "skinjob", *SUBMIT]
    environment = os.environ | import_path()
    with lock.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        both = [
            subprocess.Popen(
                command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for process in both:
            assert process.stderr
            words = process.stderr.readline()
            assert words.startswith("waiting for another submit"), words
    assert [process.wait() for process in both] == [0, 0]
    (sweep,) = sweeps(project / "runs")
    wait_until(lambda: all(run.state().status == "done" for run in sweep.runs()))
    assert {run.state().attempts for run in sweep.runs()} == {1}


@pytest.mark.train
@pytest.mark.skipif(os.geteuid() != 0, reason="to be two users one has to be root")
def test_no_reader_keeps_a_submit_waiting(project: Path) -> None:
    """Whoever can read a folder of runs cannot hold its lock: it is its owner's alone."""
    assert skinjob(*SUBMIT, "--wait", cwd=project).returncode == 0
    (lock,) = (project / "runs").glob(".submit*.lock")
    opened = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "flock", "--nonblock", lock, "true"],
        capture_output=True,
        text=True,
    )
    assert "Permission denied" in opened.stderr
    lock.unlink()
    lock.touch()
    os.chown(lock, 65534, 65534)
    assert (
        refusal(skinjob("cancel", "n", cwd=project))
        == f"{lock.relative_to(project)} is not a file of yours"
    )


def test_a_status_that_was_overtaken_by_a_submit_loses_no_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit may end while the folders are read: its jobs are looked at once more."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, project / "runs", batch_sizes=(4,))
    (run,) = sweep.runs()
    info = recorded(sweep)
    write_json(sweep.sweep_file, info | {"cluster": info["cluster"] | {"cluster": "slurm"}})

    def submit_ends(sweep: Sweep) -> bool:
        write_json(sweep.sweep_file, recorded(sweep) | {"jobs": {run.name: "7"}})
        return True

    class Queue(SlurmQueue):
        """SLURM with one job that waits."""

        def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
            return {run.name: QueuedJob("7", is_waiting=True, note="other jobs are before it")}

    monkeypatch.setattr(state, "_nobody_submits", submit_ends)
    assert [one.status for one in state.sweep_status(sweep, Queue()).runs] == ["waiting"]
    assert run.state().status == "waiting"
