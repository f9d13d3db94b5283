"""On a real SLURM, a run that is interrupted in every way ends like an uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cluster import Slurm, running_slurm
from commands import wait_until
from trees import left
from untrained import write_untrained

from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState

OPTIONS = ("--batch-sizes", "4", "--device", "cpu", "--cpus", "1", "--mem", "2", "--time", "30")
EPOCHS = {"head": 300, "all": 48}  # enough for all interruptions on a fast machine
WHOLE: dict[str, tuple[Any, ...]] = {}
USR2 = 1 << (signal.SIGUSR2 - 1)


@pytest.fixture(scope="module")
def own_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster whose node can be taken down without disturbing other tests."""
    with running_slurm(tmp_path_factory.mktemp("slurm"), accounting="none") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file whose input makes an epoch longer than the answer of SLURM to a command."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    return write_untrained(file, crop=112).path


class Trial:
    """A project that submits runs to SLURM, and steers their jobs."""

    def __init__(self, slurm: Slurm, project: Path, train: str) -> None:
        self.slurm, self.project, self.train = slurm, project, train

    def submit(self, runs: str) -> Run:
        """Submits the sweep to a folder *runs*; returns its run."""
        arguments = ["submit", *OPTIONS, "--train", self.train, "--name", "s", "--runs", runs]
        arguments += ["--epochs", str(EPOCHS[self.train])]
        self.slurm.skinjob(*arguments, cwd=self.project, code=0)
        (run,) = Sweep(self.project / runs / "s").runs()
        return run

    def job(self, run: Run) -> str:
        return str(run.sweep.info().jobs[run.name])

    def command(self, *words: str) -> None:
        self.slurm.run(words, check=True)

    def whole(self) -> tuple[Any, ...]:
        """Returns the results of an uninterrupted run, which is trained once for all tests."""
        if self.train not in WHOLE:
            run = self.submit("whole")
            assert self.wait_for_end(run).status == "done"
            WHOLE[self.train] = left(run)
        return WHOLE[self.train]

    def wait_for_end(self, run: Run) -> RunState:
        self.slurm.wait(self.job(run), timeout_s=240)
        return run.state()


def wait_for_progress(run: Run, attempts: int) -> RunState:
    """Waits until this attempt has finished an epoch; returns the run's state."""

    def is_further() -> bool:
        state = run.state()
        assert state.status in ("waiting", "running"), state
        at_work = state.status == "running" and state.attempts == attempts
        return at_work and state.epoch > state.resumed_epoch

    wait_until(is_further)
    return run.state()


def heard_usr2(pid: int) -> bool:
    """Returns whether a stopped process has got SIGUSR2, or has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return True
    pending = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(int(mask, 16) & USR2 for mask in pending)


def age(run: Run) -> None:
    """Makes a run's heartbeat old, so that the test need not wait until it counts as silent."""
    old = replace(run.state(), heartbeat_utc="2020-01-01T00:00:00Z")
    write_json(run.state_file, asdict(old))


@pytest.mark.parametrize("train", EPOCHS)
def test_an_interrupted_run_ends_like_an_uninterrupted_run(
    own_slurm: Slurm, project: Path, train: str
) -> None:
    """After preemption, requeue, time limit, a lost node and a kill, its files are the same."""
    trial = Trial(own_slurm, project, train)
    whole = trial.whole()
    run = trial.submit("runs")

    wait_for_progress(run, attempts=1)  # preempted
    trial.command("scancel", "--signal=USR2", trial.job(run))
    wait_until(lambda: run.state().status == "waiting")
    assert run.state().failure == "preempted"

    wait_for_progress(run, attempts=2)  # requeued by hand
    trial.command("scontrol", "requeue", trial.job(run))

    wait_for_progress(run, attempts=3)
    # A job works until SLURM ends it: SLURM does not restart a job that ends in the grace time.
    assert "SIGTERM: leaves" not in run.log_file.read_text()

    pid = wait_for_progress(
        run, attempts=3
    ).pid  # time limit; the process is stopped so that it does not finish
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    trial.command("scontrol", "update", f"JobId={trial.job(run)}", "TimeLimit=2")
    wait_until(lambda: heard_usr2(pid))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: run.state().status == "waiting")
    assert run.state().failure == "time limit"
    trial.command("scontrol", "update", f"JobId={trial.job(run)}", "TimeLimit=30")

    wait_for_progress(run, attempts=4)  # its node lost
    lose_the_node(own_slurm)

    pid = wait_for_progress(run, attempts=5).pid  # killed
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    own_slurm.wait(trial.job(run))
    age(run)
    trial.submit("runs")

    assert trial.wait_for_end(run).status == "done"
    assert run.state().resumed_epoch > 0
    assert left(run) == whole
    own_log = run.log_file.read_text()
    assert own_log.count("checkpoint: continues after epoch") == 5


def lose_the_node(slurm: Slurm) -> None:
    """Kills slurmd, tells SLURM that the node is down, and brings it back a moment later."""
    slurmd = int((slurm.state / "pid/slurmd").read_text().split()[0])
    os.kill(slurmd, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{slurmd}").exists())
    node = slurm.run(["sinfo", "-h", "-o", "%n"], check=True).stdout.strip()
    slurm.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"], check=True)
    slurm.restart()


def test_a_run_on_a_full_disk_continues_when_there_is_room(own_slurm: Slurm, project: Path) -> None:
    """A disk that fills up while a run trains damages no file. It is real, and small."""
    trial = Trial(own_slurm, project, "all")
    small = project / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        run = trial.submit("small")
        wait_for_progress(run, attempts=1)
        with (small / "ballast").open("wb") as ballast:
            ballast.truncate(0)
            fill(ballast.fileno())
        state = trial.wait_for_end(run)
        assert state.status != "done"
        (small / "ballast").unlink()
        age(run)
        trial.submit("small")
        assert trial.wait_for_end(run).status == "done"
        assert run.log_file.read_text().count("checkpoint: continues after epoch") == 1
        assert left(run) == trial.whole()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def fill(handle: int) -> None:
    """Writes until the disk is full."""
    for size in (1 << 20, 1 << 12, 1):
        try:
            while True:
                os.write(handle, bytes(size))
        except OSError:
            continue


def test_two_jobs_of_a_run_train_it_once(own_slurm: Slurm, project: Path) -> None:
    """The first job trains the run, the second skips it, and the run ends as usual."""
    trial = Trial(own_slurm, project, "head")
    run = trial.submit("runs")
    wait_for_progress(run, attempts=1)
    first = run.state()
    (script,) = run.sweep.submission_folder.glob("*_submission.sh")
    (pickle,) = run.sweep.submission_folder.glob("*_submitted.pkl")
    answer = own_slurm.run(["sbatch", "--hold", "--parsable", str(script)], check=True)
    second = answer.stdout.strip()
    shutil.copy(pickle, pickle.with_name(f"{second}_submitted.pkl"))
    trial.command("scontrol", "release", second)
    own_slurm.wait(second, timeout_s=120)
    assert run.state().holder == first.holder or run.state().status == "done"
    assert trial.wait_for_end(run).status == "done"
    assert run.state().job_id == trial.job(run)
    output = run.sweep.submission_folder / f"{second}_0_log.out"
    assert "skipped" in output.read_text()
