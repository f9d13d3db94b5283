"""`skinjob status` on a real SLURM: with and without accounting, sacct and the controller."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sweep_maker
from cluster import Slurm, running_slurm
from commands import Lines, import_path, recorded, wait_until

from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep, run_name
from skinjob.sweeps.records import RunState

# A job that does not train: it writes its run's state and ends in a way that depends on its number.
# The heartbeats are old, so that no test waits until a run counts as silent.
JOB = r"""#!/bin/sh
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" names)
say() {
    sed "s/STATE/$1/; s/EPOCH/$2/; s/NODE/$SLURMD_NODENAME/; s/PID/$$/" state > "$run/.state"
    mv "$run/.state" "$run/state.json"
}
say running 3
case $SLURM_ARRAY_TASK_ID in
    [0-9]) say done 20 ;;
    10) exit 7 ;;  # without a new state
    *) while [ ! -e go ]; do sleep 0.2; done; say done 20 ;;
esac
"""
LONG_AGO = "2020-01-01T00:00:00Z"
SAID = f"""{{
    "state": "STATE", "epoch": EPOCH, "host": "NODE", "pid": PID, "attempts": 1,
    "queued_utc": "{LONG_AGO}", "started_utc": "{LONG_AGO}", "heartbeat_utc": "{LONG_AGO}",
    "test_accuracy": 0.75, "images_per_s": 99.5
}}
"""
ARRAY, FAILED, CANCELLED = 50, 10, 11
QUICK = """
from skinjob.cli import main
from skinjob.queues.slurm.queue import SlurmQueue
SlurmQueue.look_s = 1
main()
"""
"""`skinjob` that asks SLURM more often than users should, so that a test is fast."""


@dataclass(frozen=True)
class Watched:
    """An array of 50 jobs: ten are done, one failed, one was cancelled, eight run, thirty wait."""

    cluster: Slurm
    sweep: Sweep
    array: str

    def skinjob(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs `skinjob` as on the login node."""
        return self.cluster.skinjob(*words, cwd=self.sweep.folder.parents[1], **env)

    def queue(self) -> Counter[str]:
        """Returns how many of its jobs are in each of SLURM's states."""
        command = ["squeue", "-h", "--array", "-o", "%T", "-j", self.array]
        return Counter(self.cluster.run(command).stdout.split())


def start_array(cluster: Slurm, folder: Path) -> Watched:
    """Queues the array; returns when its jobs are in the states that `Watched` describes."""
    names = [run_name(32, 0.01, seed) for seed in range(ARRAY)]
    sweep = sweep_maker.draw_sweep(
        folder / "runs/fifty",
        batch_sizes=(32,),
        seeds=range(ARRAY),
        finished=dict.fromkeys(names, 0),
        states=dict.fromkeys(names, RunState(queued_utc=LONG_AGO)),
    )
    (sweep.folder / "names").write_text("\n".join(names) + "\n")
    (sweep.folder / "state").write_text(SAID)
    sweep.submission_folder.mkdir()
    (sweep.submission_folder / "job").write_text(JOB)
    options = (f"--array=0-{ARRAY - 1}%8", "--mem=50M", "--time=9", "--output=job-%j.out")
    command = ["sbatch", "--parsable", *options, sweep.submission_folder / "job"]
    array = cluster.run(command, cwd=sweep.folder, check=True).stdout.strip()
    jobs = {name: f"{array}_{number}" for number, name in enumerate(names)}
    asked = {"cluster": "slurm", "mem_gb": 1.0, "time_min": 9}
    write_json(sweep.sweep_file, recorded(sweep) | {"jobs": jobs, "cluster": asked})
    watched = Watched(cluster, sweep, array)
    wait_until(lambda: watched.queue() == {"RUNNING": 8, "PENDING": 31})
    cluster.run(["scancel", f"{array}_{CANCELLED}"], check=True)
    wait_until(lambda: watched.queue() == {"RUNNING": 8, "PENDING": 30})
    wait_until(lambda: all(run.state().status == "running" for run in sweep.runs()[12:20]))
    return watched


@pytest.fixture(scope="module")
def accounted(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The array on a cluster with accounting."""
    watched = start_array(slurm, tmp_path_factory.mktemp("accounted"))
    shutil.copytree(watched.sweep.folder, as_it_was(watched))
    yield watched
    slurm.run(["scancel", watched.array])


def as_it_was(watched: Watched) -> Path:
    """Returns a copy of a sweep that no `status` has changed."""
    return watched.sweep.folder.parents[1] / "as-it-was"


@pytest.fixture(scope="module")
def unaccounted(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> Iterator[Watched]:
    """The array without accounting; *slurm* skips the test on a machine without SLURM."""
    folder = tmp_path_factory.mktemp("unaccounted")
    with running_slurm(folder / "slurm", accounting="none") as cluster:
        yield start_array(cluster, folder)


def expected(watched: Watched) -> list[tuple[str, ...]]:
    """Returns the status, epoch, accuracy, node and note that each run must have."""
    node = os.uname().nodename.split(".")[0]
    limit = "as many jobs run as --array-parallelism allows (JobArrayTaskLimit)"
    kinds = {
        "done": ("done", 20, 0.75, node, ""),
        "failed": ("failed", 3, 0.75, node, "exception"),
        "cancelled": ("cancelled", 3, 0.75, node, ""),
        "running": ("running", 3, 0.75, node, ""),
        "waiting": ("waiting", 0, None, None, limit),
    }
    order = ["done"] * 10 + ["failed", "cancelled"] + ["running"] * 8 + ["waiting"] * 30
    return [kinds[kind] for kind in order]


def rows(output: str) -> list[tuple[object, ...]]:
    """Returns the same values of each run from the output of `status --json`."""
    keys = ("status", "epoch", "accuracy", "node", "note")
    return [tuple(run[key] for key in keys) for run in json.loads(output)["runs"]]


@pytest.mark.parametrize("set_up", ["on", "off", "missing"])
def test_the_table_is_right_with_and_without_accounting(
    accounted: Watched, unaccounted: Watched, set_up: str
) -> None:
    """An array of 50 is shown correctly if sacct works, fails or is missing."""
    watched = unaccounted if set_up == "off" else accounted
    if set_up == "missing":
        shutil.copytree(as_it_was(watched), watched.sweep.folder, dirs_exist_ok=True)
    env = {"PATH": watched.cluster.path_without("sacct")} if set_up == "missing" else {}
    result = watched.skinjob("status", "fifty", "--json", **env)
    assert result.returncode == 3, result.stderr
    assert rows(result.stdout) == expected(watched)
    assert json.loads(result.stdout)["slurm"] == "answers"
    table = watched.skinjob("status", "fifty", **env).stdout
    assert (
        "\n50 runs: 8 running, 30 waiting, 10 done, 1 failed, 1 cancelled\nSLURM answers\n" in table
    )
    assert (
        len(re.findall(r"^bs0032\S+ +waiting .*  as many .*\(JobArrayTaskLimit\)$", table, re.M))
        == 30
    )
    error = Run(watched.sweep.folder / f"{run_name(32, 0.01, FAILED)}").state().reason
    assert "ended with exit code 7 on " in str(error)


def test_a_watch_survives_a_restart_of_the_controller(unaccounted: Watched) -> None:
    """Without an answer of SLURM the watch shows the folders and says so; it ends with the runs.

    A pipe gets a line for each change.
    """
    cluster, sweep = unaccounted.cluster, unaccounted.sweep
    unaccounted.skinjob("status")  # writes which runs have ended: from now on the folders have it
    argv = ["nsenter", f"--net={cluster.netns}", sys.executable, "-c", QUICK]
    with subprocess.Popen(
        [*argv, "status", "fifty", "--watch"],
        cwd=sweep.folder.parents[1],
        env=os.environ | cluster.env | import_path(),
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        lines = Lines(watch)
        lines.until("seed49 waiting")
        cluster.stop_controller()
        down = unaccounted.skinjob("status", "fifty", "--json")
        lines.until("SLURM does not answer")
        cluster.restart()
        lines.until("SLURM answers")
        cluster.run(["scancel", unaccounted.array], check=True)
        lines.until("seed49 cancelled")
        code = watch.wait(60)
    assert down.returncode == 3
    assert json.loads(down.stdout)["slurm"] == "does not answer"
    wanted = expected(unaccounted)
    assert rows(down.stdout) == [*wanted[:20], *(("waiting", 0, None, None, ""),) * 30]
    assert code == 1
    changes = [line for line in lines.read if "bs0032" in line]
    assert len(changes) == len(set(changes)) == ARRAY + 38, (
        "a line for each run, and for each that ended"
    )
