"""A submit to SLURM that is killed or gets no answer loses no job and queues none twice.

The kills are real. They come from a script that calls the real sbatch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm
from commands import SKINJOB, import_path, refusal, wait_until

from skinjob.sweeps.layout import Sweep

JOBS = ("submit", "--batch-sizes", "4,8", "--epochs", "1", "--device", "cpu", "--cpus", "1",
        "--mem", "2", "--name", "n")  # fmt: skip


@pytest.fixture
def nothing_starts(slurm: Slurm) -> Iterator[None]:
    """Makes all jobs wait."""
    partition = ["scontrol", "update", "partitionname=lab"]
    slurm.run([*partition, "state=down"], check=True)
    yield
    slurm.run(["scancel", "--user=root"], check=True)
    slurm.run([*partition, "state=up"], check=True)


def queued(slurm: Slurm) -> list[str]:
    listed = slurm.run(["squeue", "-h", "--array", "--states=PD,R", "-o%i"], check=True)
    return sorted(listed.stdout.split())


def make_sbatch(folder: Path, text: str) -> str:
    """Makes a script sbatch that can call the real sbatch as $real; returns its PATH."""
    folder.mkdir()
    real = shutil.which("sbatch")
    (folder / "sbatch").write_text(f"#!/bin/sh\nreal={real}\n{text}")
    (folder / "sbatch").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


LOST = """$real "$@" >/dev/null || exit
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
KILLED = '$real "$@" && kill -9 $PPID\n'


def test_a_submit_killed_after_sbatch_can_be_repeated(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """The same submit recognizes the jobs in the queue, and they train; it queues no others."""
    path = make_sbatch(tmp_path / "bin", KILLED)
    assert slurm.skinjob(*JOBS, cwd=project, PATH=path).returncode == -signal.SIGKILL
    jobs = queued(slurm)
    assert len(jobs) == 2
    sweep = Sweep(project / "runs/n")
    assert sweep.info().jobs == {}
    seen = slurm.skinjob("status", "n", cwd=project)
    assert all(job in seen.stdout for job in jobs), seen.stdout + seen.stderr
    again = slurm.skinjob(*JOBS, cwd=project)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("not repeated") == 2
    assert queued(slurm) == jobs
    assert sorted(sweep.info().jobs.values()) == jobs
    slurm.run(["scontrol", "update", "partitionname=lab", "state=up"], check=True)
    slurm.wait(jobs[0].split("_")[0])
    assert [run.state().status for run in sweep.runs()] == ["done", "done"]


def test_a_lost_answer_of_sbatch_is_no_refusal(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """If a busy controller queues the jobs but sbatch fails, submit finds them with squeue."""
    result = slurm.skinjob(*JOBS, cwd=project, PATH=make_sbatch(tmp_path / "bin", LOST))
    assert result.returncode == 0, result.stderr
    assert sorted(Sweep(project / "runs/n").info().jobs.values()) == queued(slurm)


def test_a_squeue_that_fails_is_no_refusal_either(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """If squeue fails too, the sweep stays, and a later submit does not queue it twice."""
    path = make_sbatch(tmp_path / "bin", LOST)
    squeue = tmp_path / "bin/squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    squeue.chmod(0o755)
    words = refusal(slurm.skinjob(*JOBS, cwd=project, PATH=path))
    assert words == (
        "SLURM did not say whether it took the jobs: Socket timed out on send/recv operation"
    )
    jobs = queued(slurm)
    assert len(jobs) == 2
    words = refusal(slurm.skinjob(*JOBS, cwd=project, PATH=path))
    assert words == "SLURM does not say whether it has the jobs of runs/n already"
    assert slurm.skinjob(*JOBS, cwd=project).returncode == 0
    assert queued(slurm) == jobs == sorted(Sweep(project / "runs/n").info().jobs.values())


def test_a_job_whose_path_is_not_utf8_is_ignored(slurm: Slurm, project: Path) -> None:
    """Another job of the user whose path is not UTF-8 stops no command."""
    script = project / os.fsdecode(b"caf\xe9") / "job.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nsleep 60\n")
    answer = slurm.run(["sbatch", "--parsable", script], cwd=project, check=True)
    try:
        assert slurm.skinjob(*JOBS, cwd=project).returncode == 0
        for command in (("status", "n"), ("cancel", "n")):
            result = slurm.skinjob(*command, cwd=project)
            assert result.returncode in (0, 3), result.stderr
            assert "Traceback" not in result.stderr
    finally:
        slurm.run(["scancel", answer.stdout.strip()], check=True)


def test_a_disk_that_fills_up_after_sbatch_loses_no_job(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """Queued jobs are found again if their ids could not be written."""
    # A folder named sweep.json makes every write of the file fail.
    spoil = f"cd {project}/runs/n && cp sweep.json kept && rm sweep.json && mkdir sweep.json\n"
    path = make_sbatch(tmp_path / "bin", f'$real "$@"\n{spoil}')
    assert slurm.skinjob(*JOBS, cwd=project, PATH=path).returncode == 1
    jobs = queued(slurm)
    folder = project / "runs/n"
    (folder / "sweep.json").rmdir()
    (folder / "kept").rename(folder / "sweep.json")
    again = slurm.skinjob(*JOBS, cwd=project)
    assert again.returncode == 0, again.stderr
    assert queued(slurm) == jobs == sorted(Sweep(folder).info().jobs.values())


SLOW = 'sleep 11; $real "$@"; touch ended\n'


def test_a_submit_waits_for_the_sbatch_of_a_killed_submit(
    slurm: Slurm, project: Path, tmp_path: Path, nothing_starts: None
) -> None:
    """While sbatch runs, its jobs are not known; after it has ended, they are found."""
    path = make_sbatch(tmp_path / "bin", SLOW)
    command = ["nsenter", f"--net={slurm.netns}", *SKINJOB, *JOBS]
    env = {**os.environ, **slurm.env, **import_path(), "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1"}
    first = subprocess.Popen(command, cwd=project, env=env | {"PATH": path})
    sweep = Sweep(project / "runs/n")
    wait_until(lambda: list(sweep.submission_folder.glob(".submission_file_*.sh")))
    first.kill()
    first.wait()
    results = [slurm.skinjob(*JOBS, cwd=project) for _ in range(2)]
    wait_until((project / "ended").exists)
    jobs = queued(slurm)
    assert len(jobs) == 2, [result.stdout + result.stderr for result in results]
    assert results[-1].returncode == 0, results[-1].stderr
    assert sorted(sweep.info().jobs.values()) == jobs
