"""A submit that is interrupted, or runs twice at once, loses no run and leaves no partial sweep.

Interrupts and kills are real. They come at a chosen file operation.
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
FAILING = ("--setup", "exit 3")  # its jobs fail at once: most tests here need no training
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
"""`skinjob` that gets a signal at its n-th file operation in the folder of runs."""


def stopped(at: int, number: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STOPPED, str(at), str(int(number)), *SUBMIT, *FAILING]
    environment = os.environ | import_path()
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("at", [3, 8, 15])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_an_interrupted_submit_can_be_repeated(project: Path, at: int, number: int) -> None:
    """The same command continues, wherever the first ended, and no partial sweep is visible."""
    result = stopped(at, number, project)
    assert result.returncode in (130, -signal.SIGKILL), result.stderr
    assert all(sweep.sweep_file.exists() for sweep in map(Sweep, (project / "runs").glob("[!.]*")))
    if number == signal.SIGINT:
        assert not list((project / "runs").glob("*n*.part"))
    again = skinjob(*SUBMIT, *FAILING, "--wait", cwd=project)
    assert refusal(again).startswith("not every run of ")
    (sweep,) = sweeps(project / "runs")
    assert [run.state().failure for run in sweep.runs()] == ["never started"] * 3
    assert not list((project / "runs").glob(".*.part"))


@pytest.mark.train
def test_two_submits_of_one_name_make_one_sweep(project: Path) -> None:
    """The second submit waits for the first, says so, and does not queue the jobs again."""
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


@pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")
def test_another_user_cannot_block_a_submit(project: Path) -> None:
    """A user who can read a folder of runs cannot hold its lock: only the owner can open it."""
    skinjob(*SUBMIT, *FAILING, cwd=project, code=0)
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


def test_a_submit_that_ends_during_a_status_loses_no_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a submit ends while `status` reads the folders, `status` looks at the jobs again."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, project / "runs", batch_sizes=(4,))
    (run,) = sweep.runs()
    info = recorded(sweep)
    write_json(sweep.sweep_file, info | {"cluster": info["cluster"] | {"cluster": "slurm"}})

    def submit_ends(sweep: Sweep) -> bool:
        write_json(sweep.sweep_file, recorded(sweep) | {"jobs": {run.name: "7"}})
        return True

    class Queue(SlurmQueue):
        """SLURM with a job that waits."""

        def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
            return {run.name: QueuedJob("7", is_waiting=True, note="other jobs are before it")}

    monkeypatch.setattr(state, "_nobody_submits", submit_ends)
    assert [status.status for status in state.sweep_status(sweep, Queue()).runs] == ["waiting"]
    assert run.state().status == "waiting"
