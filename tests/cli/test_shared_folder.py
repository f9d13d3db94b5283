"""Users who share a folder of runs do not disturb each other; folders that cannot be written.

The other user and the mounts are real.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import sweep_maker
from cluster import Slurm
from commands import import_path, recorded, refusal, skinjob, wait_until
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.local import queue_lock
from skinjob.status.status import run_statuses
from skinjob.sweeps.records import RunState

pytestmark = pytest.mark.slow  # each test acts as two users

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
AN_HOUR_S = 3600

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")


def environment() -> dict[str, str]:
    return os.environ | import_path() | {"HOME": "/nonexistent"}


def as_nobody(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `skinjob` as a user who is in no group of the owner."""
    command = [*NOBODY, sys.executable, "-m", "skinjob", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


@pytest.fixture
def group() -> Iterator[Path]:
    """A folder that other users can enter; pytest's own folders are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def open_slurm(slurm: Slurm) -> Iterator[Slurm]:
    """The cluster, with a configuration and munge socket that other users can reach."""
    places = (slurm.state, *slurm.state.parents)
    private = [place for place in places if place.stat().st_mode & 0o077 == 0]
    for place in private:
        place.chmod(0o711)
    yield slurm
    for place in private:
        place.chmod(0o700)


def share(folder: Path) -> None:
    """Gives the colleague's group all rights, except to private folders."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 0, 65534)
        if "submission" not in path.parts:
            path.chmod(0o775 if path.is_dir() else 0o664)


@needs_root
@pytest.mark.parametrize(
    "command",
    [("status", "sweep"), ("list",), ("report", "sweep"), ("logs", "sweep/bs0004-lr0.1-seed0")],
    ids=" ".join,
)
def test_a_colleague_who_looks_at_a_sweep_changes_no_run(
    project: Path, group: Path, command: tuple[str, ...]
) -> None:
    """A user who cannot see the owner's queue draws no conclusions and writes nothing."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, group / "runs", batch_sizes=(4, 8))
    waiting, running = sweep.runs()
    old = "2026-01-01T00:00:00Z"
    write_json(waiting.state_file, asdict(RunState(queued_utc=old)))
    at_work = RunState(
        status="running", host="elsewhere", pid=1, started_utc=old, heartbeat_utc=old
    )
    write_json(running.state_file, asdict(at_work))
    share(group)
    with queue_lock(sweep).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a running queue does
        before = [run.state_file.read_bytes() for run in sweep.runs()]
        result = as_nobody(*command, cwd=group)
        assert [run.state_file.read_bytes() for run in sweep.runs()] == before
    assert "Traceback" not in result.stderr
    if command[0] == "status":
        assert "1 running, 1 waiting" in result.stdout
        assert "only root can see whether it still runs" in result.stdout


@needs_root
def test_a_colleagues_private_sweep_stops_no_command(project: Path, group: Path) -> None:
    """If a colleague's umask is 077, others cannot read sweep and cache, and work without them."""
    for name in ("skin_cancer", "weights"):
        shutil.copytree(project / name, group / name)
        (group / name).chmod(0o755)
    before = os.umask(0o077)
    try:
        runs, weights = group / "runs", group / "weights/resnet18.safetensors"
        sweep = make_sweep(group / "skin_cancer", weights, runs, batch_sizes=(4,))
        sweep.views_folder.mkdir(parents=True)
    finally:
        os.umask(before)
    runs.chmod(0o1777)
    grid = ("--cluster", "local", "--batch-sizes", "4")
    for command, code in (
        (("submit", *grid, "--dry-run"), 0),
        (("doctor", *grid), 0),
        (("list",), 0),
        (("clean",), 0),
        (("status",), 1),
        (("report",), 1),
    ):
        result = as_nobody(*command, cwd=group)
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    look = "import skinjob.sweeps.layout as r; print(r.Sweep(r.Path('runs/x')).cache_folder)"
    own = [*NOBODY, sys.executable, "-c", look]
    seen = subprocess.run(own, cwd=group, env=environment(), capture_output=True, text=True)
    assert seen.stdout == "runs/.cache-65534\n", seen.stderr
    assert sweep.cache_folder == runs / ".cache"


@needs_root
def test_a_colleague_sees_the_owners_jobs_on_slurm(open_slurm: Slurm, group: Path) -> None:
    """`status` asks SLURM for the jobs of the sweep's owner; a job that SLURM hides is not lost."""
    done = {"bs0032-lr0.01-seed0": 1, "bs0064-lr0.01-seed0": 1}
    sweep = sweep_maker.draw_sweep(group / "runs/s", batch_sizes=(32, 64), epochs=2, finished=done)
    sweep.submission_folder.mkdir(mode=0o700)
    script = sweep.submission_folder / "job.sh"
    script.write_text("#!/bin/sh\nsleep 600\n")
    submit = ["sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", script]
    job = open_slurm.run(submit, check=True).stdout.strip()
    try:
        wait_until(lambda: "R" in open_slurm.run(["squeue", "-h", "-o%t", "-j", job]).stdout)
        first, second = sweep.runs()
        info = recorded(sweep) | {"jobs": {first.name: job, second.name: "999999"}}
        write_json(sweep.sweep_file, info)
        share(group)
        before = [run.state_file.read_bytes() for run in sweep.runs()]
        command = [*NOBODY, sys.executable, "-m", "skinjob", "status", "s"]
        result = open_slurm.run(command, cwd=group, env=environment())
    finally:
        open_slurm.run(["scancel", job], check=True)
    assert "2 running" in result.stdout, result.stdout + result.stderr
    assert "SLURM shows you no job of it: only root can see" in result.stdout
    assert [run.state_file.read_bytes() for run in sweep.runs()] == before


@needs_root
def test_a_link_to_a_colleagues_sweep_does_not_change_its_owner(project: Path, group: Path) -> None:
    """Commands write nothing to a colleague's sweep, also through the user's own link."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, group / "runs", batch_sizes=(4,))
    share(group)
    (group / "mine").mkdir()
    (group / "mine/linked").symlink_to(sweep.folder)
    for path in (group / "mine", group / "mine/linked"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    (state,) = [run.state_file for run in sweep.runs()]
    write_json(state, asdict(RunState(queued_utc="2026-01-01T00:00:00Z")))
    state.chmod(0o666)
    before = state.read_bytes()
    for command, code in (("list", 0), ("status", 3)):
        result = as_nobody(command, "--runs", "mine", cwd=group)
        assert result.returncode == code, result.stdout + result.stderr
    words = refusal(as_nobody("cancel", "mine/linked", cwd=group))
    assert words == "sweep mine/linked belongs to root"
    assert state.read_bytes() == before


def test_a_pipe_named_sweep_json_blocks_no_command(tmp_path: Path) -> None:
    """`list` does not wait for the pipe, and shows the other sweeps."""
    sweep_maker.draw_sweep(tmp_path / "runs/good")
    (tmp_path / "runs/bad").mkdir()
    os.mkfifo(tmp_path / "runs/bad/sweep.json")
    result = skinjob("list", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "good" in result.stdout
    assert "bad/sweep.json is not a file" in result.stdout


@pytest.mark.train
@needs_root
def test_a_view_that_cannot_be_read_is_computed_again(group: Path) -> None:
    """A view that another user has made private counts as missing."""
    look = (
        "import sys; from pathlib import Path; from skinjob.train.features import ViewCache\n"
        "cache, key = ViewCache(Path(sys.argv[1]), 512), {'view': '1'}\n"
        "cache.file(key).exists() or cache.file(key).write_bytes(b'x')\n"
        "print(cache.has(key), cache.read(key, 1) if len(sys.argv) > 2 else '')\n"
    )
    (group / "views").mkdir()
    words = [sys.executable, "-c", look, group / "views"]
    subprocess.run(words, env=environment(), check=True, capture_output=True)
    (view,) = (group / "views").iterdir()
    view.chmod(0o600)
    (group / "views").chmod(0o777)
    seen = subprocess.run(
        [*NOBODY, *words, "read"], env=environment(), capture_output=True, text=True
    )
    assert seen.stdout == "False None\n", seen.stderr


def test_a_node_whose_clock_is_ahead_does_not_keep_a_dead_run_running(
    project: Path, tmp_path: Path
) -> None:
    """A heartbeat from the future does not count; the file's time does."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    sweep = make_sweep(data, weights, tmp_path / "runs", batch_sizes=(4,))
    (run,) = sweep.runs()
    ahead = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + AN_HOUR_S))
    state = RunState(
        status="running", host="elsewhere", pid=1, started_utc=ahead, heartbeat_utc=ahead
    )
    write_json(run.state_file, asdict(state))
    assert [run.status for run in run_statuses(sweep)] == ["running"]  # the file is new
    two_minutes_ago = time.time() - 120
    os.utime(run.state_file, (two_minutes_ago, two_minutes_ago))
    assert [run.status for run in run_statuses(sweep)] == ["lost"]


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


COMMANDS = (
    ("cancel", "sweep"),
    ("clean", "--yes"),
    ("train", "runs/sweep/bs0004-lr0.1-seed0"),
    ("submit", "--name", "other", "--cluster", "local", "--batch-sizes", "4"),
    ("demo", "--folder", "runs/demo"),
)


@pytest.mark.train
@needs_root
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_read_only_folder_is_an_error(project: Path, command: tuple[str, ...]) -> None:
    """The error names the folder that cannot be written."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    make_sweep(data, weights, project / "runs", batch_sizes=(4,))
    with read_only(project / "runs"):
        words = refusal(skinjob(*command, cwd=project))
    assert "runs" in words
    assert "read-only file system" in words.lower()


@needs_root
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_another_users_folder_is_an_error(
    project: Path, group: Path, command: tuple[str, ...]
) -> None:
    """A user without permission gets an error and a fix from every command that writes."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    make_sweep(data, weights, group / "runs", batch_sizes=(4,))
    assert "runs" in refusal(as_nobody(*command, cwd=group))


@pytest.mark.parametrize("command", ["status", "list", "submit", "report", "clean", "config"])
def test_a_removed_working_folder_is_no_traceback(tmp_path: Path, command: str) -> None:
    """A command in a folder that was removed meanwhile ends with an error in two lines."""
    here = tmp_path / "gone"
    here.mkdir()
    code = "import os, sys; from skinjob.cli import main; os.rmdir(os.getcwd()); main(sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert refusal(result) == "the current folder no longer exists"
