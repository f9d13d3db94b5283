"""A submit that is broken off, doubled or not answered: nothing half made stays, nothing is lost.

Interrupts and kills are real, at file operations that are counted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm
from commands import refusal, skinjob, wait_until
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.slurm.client import Answers, QueuedJob
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
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


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
    assert [run.state().state for run in sweep.runs()] == ["done"] * 3
    assert not list((project / "runs").glob(".*.part"))


def test_two_submits_of_one_name_make_one_sweep(project: Path) -> None:
    """The second waits for the first, says so, and finds what it has queued."""
    lock = project / "runs" / f".submit-{os.geteuid()}.lock"
    lock.parent.mkdir()
    command = [sys.executable, "-m", "skinjob", *SUBMIT]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
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
    wait_until(lambda: all(run.state().state == "done" for run in sweep.runs()))
    assert {run.state().attempts for run in sweep.runs()} == {1}


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


# --- SLURM ------------------------------------------------------------------------------------

JOBS = ("submit", "--batch-sizes", "4,8", "--epochs", "1", "--device", "cpu", "--cpus", "1",
        "--mem", "2", "--name", "n")  # fmt: skip


@pytest.fixture
def nothing_starts(slurm: Slurm) -> Iterator[None]:
    partition = ["scontrol", "update", "partitionname=lab"]
    slurm.run([*partition, "state=down"], check=True)
    yield
    slurm.run(["scancel", "--user=root"], check=True)
    slurm.run([*partition, "state=up"], check=True)


def on_slurm(
    slurm: Slurm, *arguments: str, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    if path:
        environment["PATH"] = f"{path}:{os.environ['PATH']}"
    return slurm.run([sys.executable, "-m", "skinjob", *arguments], cwd=cwd, env=environment)


def queued(slurm: Slurm) -> list[str]:
    listed = slurm.run(["squeue", "-h", "--array", "--states=PD,R", "-o%i"], check=True)
    return sorted(listed.stdout.split())


def make_sbatch(folder: Path, text: str) -> Path:
    """Makes an sbatch that does something besides; returns the folder for PATH."""
    folder.mkdir()
    real = shutil.which("sbatch")
    (folder / "sbatch").write_text(f"#!/bin/sh\nreal={real}\n{text}")
    (folder / "sbatch").chmod(0o755)
    return folder


LOST = """$real "$@" >/dev/null || exit
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
KILLED = '$real "$@" && kill -9 $PPID\n'


def test_a_submit_killed_after_sbatch_is_taken_up(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """The jobs that SLURM took are known by their script, get their work, and are queued once."""
    path = make_sbatch(tmp_path / "bin", KILLED)
    assert on_slurm(slurm, *JOBS, cwd=project, path=path).returncode == -signal.SIGKILL
    jobs = queued(slurm)
    assert len(jobs) == 2
    sweep = Sweep(project / "runs/n")
    assert sweep.info()["jobs"] == {}
    seen = on_slurm(slurm, "status", "n", cwd=project)
    assert all(job in seen.stdout for job in jobs), seen.stdout + seen.stderr
    again = on_slurm(slurm, *JOBS, cwd=project)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("not repeated") == 2
    assert queued(slurm) == jobs
    assert sorted(sweep.info()["jobs"].values()) == jobs
    slurm.run(["scontrol", "update", "partitionname=lab", "state=up"], check=True)
    slurm.wait(jobs[0].split("_")[0])
    assert [run.state().state for run in sweep.runs()] == ["done", "done"]


def test_an_answer_of_sbatch_that_was_lost_is_no_refusal(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """A busy controller queues the jobs and does not say so: squeue does."""
    result = on_slurm(slurm, *JOBS, cwd=project, path=make_sbatch(tmp_path / "bin", LOST))
    assert result.returncode == 0, result.stderr
    assert sorted(Sweep(project / "runs/n").info()["jobs"].values()) == queued(slurm)


def test_silence_of_slurm_is_no_refusal_either(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """Where SLURM does not say what is queued either, the sweep stays, and is not queued twice."""
    path = make_sbatch(tmp_path / "bin", LOST)
    (path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (path / "squeue").chmod(0o755)
    words = refusal(on_slurm(slurm, *JOBS, cwd=project, path=path))
    assert words == (
        "SLURM did not say whether it took the jobs: Socket timed out on send/recv operation"
    )
    jobs = queued(slurm)
    assert len(jobs) == 2
    words = refusal(on_slurm(slurm, *JOBS, cwd=project, path=path))
    assert words == "SLURM does not say whether it has the jobs of runs/n already"
    assert on_slurm(slurm, *JOBS, cwd=project).returncode == 0
    assert queued(slurm) == jobs == sorted(Sweep(project / "runs/n").info()["jobs"].values())


def test_a_job_whose_path_is_no_utf8_is_passed_over(slurm: Slurm, project: Path) -> None:
    """A job of the user's whose script has another name than ours can read stops no command."""
    script = project / os.fsdecode(b"caf\xe9") / "job.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nsleep 60\n")
    answer = slurm.run(["sbatch", "--parsable", script], cwd=project, check=True)
    try:
        assert on_slurm(slurm, *JOBS, cwd=project).returncode == 0
        for command in (("status", "n"), ("cancel", "n")):
            result = on_slurm(slurm, *command, cwd=project)
            assert result.returncode in (0, 3), result.stderr
            assert "Traceback" not in result.stderr
    finally:
        slurm.run(["scancel", answer.stdout.strip()], check=True)


def test_a_disk_that_fills_up_after_sbatch_loses_no_job(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """Queued jobs stay known when their ids cannot be written down."""
    # In the place of sweep.json a folder: no write of it succeeds.
    spoil = f"cd {project}/runs/n && cp sweep.json kept && rm sweep.json && mkdir sweep.json\n"
    path = make_sbatch(tmp_path / "bin", f'$real "$@"\n{spoil}')
    assert on_slurm(slurm, *JOBS, cwd=project, path=path).returncode == 1
    jobs = queued(slurm)
    folder = project / "runs/n"
    (folder / "sweep.json").rmdir()
    (folder / "kept").rename(folder / "sweep.json")
    again = on_slurm(slurm, *JOBS, cwd=project)
    assert again.returncode == 0, again.stderr
    assert queued(slurm) == jobs == sorted(Sweep(folder).info()["jobs"].values())


SLOW = 'sleep 11; $real "$@"; touch ended\n'


def test_an_sbatch_that_outlives_its_submit_is_waited_for(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """While sbatch is at work nobody can know what SLURM took; later its jobs are taken up."""
    path = make_sbatch(tmp_path / "bin", SLOW)
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": f"{path}:{os.environ['PATH']}"}
    command = ["nsenter", f"--net={slurm.netns}", sys.executable, "-m", "skinjob", *JOBS]
    slurm_words = {**os.environ, **slurm.env, "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1"}
    first = subprocess.Popen(command, cwd=project, env=slurm_words | environment)
    sweep = Sweep(project / "runs/n")
    wait_until(lambda: list(sweep.submission_folder.glob(".submission_file_*.sh")))
    first.kill()
    first.wait()
    results = [on_slurm(slurm, *JOBS, cwd=project) for _ in range(2)]
    wait_until((project / "ended").exists)
    jobs = queued(slurm)
    assert len(jobs) == 2, [result.stdout + result.stderr for result in results]
    assert results[-1].returncode == 0, results[-1].stderr
    assert sorted(sweep.info()["jobs"].values()) == jobs


def test_a_status_that_was_overtaken_by_a_submit_loses_no_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submit may end while the folders are read: its jobs are looked at once more."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, project / "runs", batch_sizes=(4,))
    (run,) = sweep.runs()
    info = sweep.info()
    write_json(sweep.sweep_file, info | {"cluster": info["cluster"] | {"cluster": "slurm"}})

    def submit_ends(sweep: Sweep) -> bool:
        write_json(sweep.sweep_file, sweep.info() | {"jobs": {run.name: "7"}})
        return True

    class Queue(Answers):
        """SLURM with one job that waits."""

        def queue(self, submission: Path, user: str | None = None) -> dict[str, QueuedJob]:
            return {"7": QueuedJob("PENDING", "", "Priority", "script")}

    monkeypatch.setattr(state, "_nobody_submits", submit_ends)
    assert [one.state for one in state.survey(sweep, Queue()).runs] == ["waiting"]
    assert run.state().state == "queued"
