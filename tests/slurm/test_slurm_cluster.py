"""The tests' cluster is what the other tests expect: real, behind an air gap, and tidy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster import SCRIPTS, Slurm

LOOK_OUTSIDE = """
import errno, json, os, socket

def error_of(attempt):
    try:
        attempt()
    except OSError as error:
        return type(error).__name__, errno.errorcode.get(error.errno)

print(json.dumps({
    "interfaces": [name for _, name in socket.if_nameindex()],
    "connection": error_of(lambda: socket.create_connection(("1.1.1.1", 443), timeout=20)),
    "name": error_of(lambda: socket.getaddrinfo("download.pytorch.org", 443)),
}))
"""


def test_a_job_cannot_reach_the_network(slurm: Slurm, tmp_path: Path) -> None:
    """A job sees only loopback: a connection fails at once, and no name is resolved."""
    script = tmp_path / "look_outside.py"
    script.write_text(LOOK_OUTSIDE)

    job_id = slurm.sbatch(f"{sys.executable} {script}", cwd=tmp_path)
    slurm.wait(job_id)

    seen = json.loads((tmp_path / f"job-{job_id}.out").read_text())
    assert seen["interfaces"] == ["lo"]
    assert seen["connection"] == ["OSError", "ENETUNREACH"]
    assert seen["name"][0] == "gaierror"


def test_a_job_gets_the_gpus_it_asked_for(slurm: Slurm, tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES names as many GPUs as the job asked for, or none."""
    show = 'echo "$CUDA_VISIBLE_DEVICES"'
    with_two = slurm.sbatch(show, "--gpus-per-node=2", cwd=tmp_path)
    with_none = slurm.sbatch(show, cwd=tmp_path)
    slurm.wait(f"{with_two},{with_none}")

    two = (tmp_path / f"job-{with_two}.out").read_text().strip().split(",")
    none = (tmp_path / f"job-{with_none}.out").read_text().strip()
    assert len(set(two)) == 2
    assert set(two) < {"0", "1", "2", "3"}
    assert none == ""


def test_sacct_shows_how_a_job_ended(slurm: Slurm, tmp_path: Path) -> None:
    """Accounting is real: sacct shows which job succeeded and which failed."""
    good = slurm.sbatch("true", cwd=tmp_path)
    bad = slurm.sbatch("exit 3", cwd=tmp_path)
    slurm.wait(f"{good},{bad}")

    ends = {good: "COMPLETED|0:0", bad: "FAILED|3:0"}
    deadline = time.monotonic() + 60  # sacct is some seconds behind squeue
    while (recorded := _sacct(slurm, good, bad)) != ends and time.monotonic() < deadline:
        time.sleep(0.5)
    assert recorded == ends


def test_a_second_cluster_leaves_no_trace(slurm: Slurm, tmp_path: Path) -> None:
    """Two clusters can run at once; a cluster that stops ends its daemons and jobs."""
    second = Slurm.start(tmp_path / "second", gpus=1, gpu_type="a100", cpus=2)
    try:
        job_id = second.sbatch("touch running; sleep 600", cwd=tmp_path)
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        node = second.run(["scontrol", "show", "node"], check=True).stdout
        processes = _processes_naming(second.state)
        second.restart()
        again = second.run(["sinfo", "-h", "-p", "lab", "-o", "%c %G"], check=True).stdout.strip()
    finally:
        second.stop()

    assert job_id == "1", "it has its own queue"
    assert "CPUTot=2" in node
    assert len(processes) >= 4, "munged, slurmctld, slurmd and the job"
    assert again == "2 gpu:a100:1", "a restart keeps its options"
    assert _processes_naming(tmp_path) == []
    assert not second.netns.exists()
    assert slurm.run(["sinfo", "-h", "-o", "%c"], check=True).stdout.strip() == "8"


def test_missing_packages_are_named(tmp_path: Path) -> None:
    """On a machine without SLURM a single line says which packages to install."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "sed"):
        path = shutil.which(tool)
        assert path
        (tools / tool).symlink_to(path)

    up = subprocess.run(
        [tools / "bash", SCRIPTS / "up.sh", tmp_path / "state", "--accounting", "dbd"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert up.returncode == 3
    assert up.stderr.startswith("slurm: SLURM is not installed: apt-get install ")
    assert "slurm-client" in up.stderr
    assert "mariadb-client-core" in up.stderr
    assert not (tmp_path / "state").exists()


def _sacct(slurm: Slurm, *job_ids: str) -> dict[str, str]:
    """Returns state and exit code of each job by its id."""
    argv = ["sacct", "-nXP", "-o", "JobID,State,ExitCode", "-j", ",".join(job_ids)]
    lines = slurm.run(argv, check=True).stdout.splitlines()
    return dict(line.split("|", 1) for line in lines)


def _processes_naming(folder: Path) -> list[int]:
    """Returns the other processes that have *folder* in their command line."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(process.name) != os.getpid() and os.fsencode(folder) in command:
            processes.append(int(process.name))
    return processes
