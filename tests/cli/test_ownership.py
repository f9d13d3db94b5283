"""No other user can run code as the user who submits, as far as the rights of folders show.

The other user is real, and so are the folders, links and ACLs.
"""

from __future__ import annotations

import os
import pwd
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from cluster import Slurm
from commands import import_path, refusal, skinjob
from trees import make_sweep

from skinjob.errors import RunError
from skinjob.ownership import require_safe
from skinjob.sweeps.layout import Sweep

MALLORY = pwd.getpwnam("nobody")
SUBMIT = ("submit", "--batch-sizes", "4", "--epochs", "2", "--lr", "0.1", "--device", "cpu",
          "--precision", "fp32", "--cluster", "local")  # fmt: skip

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs root")


def give(path: Path) -> None:
    os.chown(path, MALLORY.pw_uid, MALLORY.pw_gid, follow_symlinks=False)


def let_write(path: Path) -> None:
    """Gives the other user the right to write, as `setfacl -m u:nobody:rwx` does."""
    entries = [
        (0x01, 7, -1),
        (0x02, 7, MALLORY.pw_uid),
        (0x04, 5, -1),
        (0x10, 7, -1),
        (0x20, 5, -1),
    ]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def let_group_write(path: Path) -> None:
    os.chown(path, 0, MALLORY.pw_gid)
    path.chmod(0o775)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    give(path)


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """The folders of a sweep, as submit makes them before it queues anything."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    return make_sweep(data, weights, project / "runs", batch_sizes=(4,))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (give, "belongs to nobody"),
        (let_write, "can be written by nobody (ACL)"),
        (let_group_write, "can be written by the group nogroup"),
        (link, "belongs to nobody"),
        (lambda path: path.chmod(0o777), "can be written by everybody"),
    ],
    ids=["owner", "ACL", "group", "link", "everybody"],
)
@pytest.mark.parametrize("place", ["", "runs"], ids=["a parent", "runs"])
def test_a_folder_that_another_user_could_replace_is_refused(
    sweep: Sweep, place: str, spoil: Callable[[Path], None], words: str
) -> None:
    """A user who can rename a folder above the sweep could put another sweep in its place.

    Submit refuses such a folder, and so does the job when it starts.
    """
    from skinjob.submit.start import require_own_pickles

    project = sweep.folder.parent.parent
    folder = project / place
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*.json")}
    spoil(folder)
    options = ("--name", "sweep", "--runs", sweep.folder.parent)
    assert f"{folder} {words}" in refusal(skinjob(*SUBMIT, *options, cwd=project))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(RunError, match="who could replace"):
        require_own_pickles(sweep.submission_folder, [])


@pytest.mark.train
def test_a_project_folder_of_a_trusted_user_is_accepted(sweep: Sweep) -> None:
    """With --trust NAME, folders of that user are accepted."""
    project = sweep.folder.parent.parent
    give(project)
    trusting = (*SUBMIT, "--name", "sweep", "--trust", "nobody")
    result = skinjob(*trusting, "--wait", cwd=project)
    assert result.returncode == 0, result.stderr
    assert [run.state().status for run in sweep.runs()] == ["done"]


def test_a_sticky_folder_is_accepted_unless_another_user_owns_it(tmp_path: Path) -> None:
    """In a folder such as /tmp, only its owner can rename other users' files."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    require_safe(shared / "runs/mine")
    give(shared)
    with pytest.raises(RunError, match="belongs to nobody"):
        require_safe(shared / "runs/mine")


@pytest.mark.parametrize("options", [(), ("--name", "sweep")], ids=["by its recipe", "by name"])
def test_a_sweep_of_another_user_is_not_continued(sweep: Sweep, options: tuple[str, ...]) -> None:
    """A sweep.json that another user put into a shared folder of runs gets no job of the user."""
    runs = sweep.folder.parent
    runs.chmod(0o1777)
    for path in (sweep.folder, *sweep.folder.rglob("*")):
        give(path)
    result = skinjob(*SUBMIT, *options, "--setup", "exit 3", cwd=runs.parent)
    if options:
        assert refusal(result) == "sweep runs/sweep belongs to nobody"
    else:
        assert result.returncode == 0, result.stderr
        assert len(list(runs.glob("*/sweep.json"))) == 2
    assert not list(sweep.submission_folder.glob("*.pkl"))
    assert sweep.runs()[0].state().status == "waiting"


@pytest.mark.parametrize("command", ["retry", "cancel"])
def test_only_the_owner_can_retry_or_cancel_a_sweep(sweep: Sweep, command: str) -> None:
    """The error for another user names the owner and the command that the owner can run."""
    give(sweep.folder)
    before = [run.state() for run in sweep.runs()]
    result = skinjob(command, sweep.folder, cwd=sweep.folder.parent.parent)
    assert refusal(result) == f"sweep {sweep.folder} belongs to nobody"
    assert f"ask nobody to run: skinjob {command} {sweep.folder}" in result.stderr
    assert [run.state() for run in sweep.runs()] == before


def test_a_job_executes_no_pickle_of_another_user(sweep: Sweep) -> None:
    """The job refuses a pickle that another user put into the folder."""
    pickle = sweep.submission_folder / "1_submitted.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    give(pickle)
    command = [sys.executable, "-m", "skinjob.submit.start", str(sweep.submission_folder)]
    environment = os.environ | {"SLURM_JOB_ID": "1", "SUBMITIT_EXECUTOR": "slurm"}
    environment["PYTHONPATH"] = ":".join(sys.path)
    cwd = sweep.folder.parent.parent
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert refusal(result) == f"{pickle} belongs to another user: the job does not execute it"
    assert not (cwd / "pwned").exists()


def test_a_pickle_that_is_renamed_meanwhile_stops_no_job(sweep: Sweep) -> None:
    """submit may rename the pickles of jobs that have already started."""
    from skinjob.submit.start import require_own_pickles

    names = [sweep.submission_folder / name for name in ("a.pkl", "b.pkl")]
    names[0].touch()
    ended = Event()

    def rename() -> None:
        while not ended.is_set():
            names[0].rename(names[1])
            names.reverse()

    renaming = Thread(target=rename)
    renaming.start()
    try:
        for _ in range(3000):
            require_own_pickles(sweep.submission_folder, [])
    finally:
        ended.set()
        renaming.join()


def test_a_folder_that_others_can_write_stops_a_queued_job(slurm: Slurm, project: Path) -> None:
    """A job executes nothing if its folder was opened after the submit, and status says why."""
    options = ("--batch-sizes", "4", "--device", "cpu", "--cpus", "1", "--mem", "2")
    python = [sys.executable, "-m", "skinjob"]
    environment = import_path()
    slurm.run(["scontrol", "update", "partitionname=lab", "state=down"], check=True)
    try:
        submit = [*python, "submit", *options, "--name", "s"]
        result = slurm.run(submit, cwd=project, env=environment)
        assert result.returncode == 0, result.stderr
        sweep = Sweep(project / "runs/s")
        sweep.submission_folder.chmod(0o777)
    finally:
        slurm.run(["scontrol", "update", "partitionname=lab", "state=up"], check=True)
    (job,) = set(sweep.info().jobs.values())
    slurm.wait(job)
    (run,) = sweep.runs()
    os.utime(run.state_file, (0, 0))  # without a heartbeat for a long time
    output = slurm.run([*python, "status", "s"], cwd=project, env=environment).stdout
    assert f"{sweep.submission_folder} is not a private folder of yours" in output
    assert f"fix: ls -ld {sweep.submission_folder}" in output
    assert not run.metrics_file.exists()
