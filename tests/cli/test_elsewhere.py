"""Differences between the login node and the node of a job: links, folders, modules, locales.

And a queue of this machine that was killed. Links, moves, kills and the locale are real.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Slurm
from commands import import_path, only_sweep, skinjob, status_by_run, wait_until

from skinjob.sweeps.layout import Sweep

LOCAL = ("--cluster", "local", "--batch-sizes", "4", "--epochs", "1", "--device", "cpu")
SMALL = ("--batch-sizes", "4", "--epochs", "1", "--device", "cpu", "--cpus", "1", "--mem", "2")
SHADOWS = ("random.py", "argparse.py", "logging.py", "skinjob.py", "torch.py")
CLASS = "mélanome"
SKINJOB = str(Path(sys.executable).with_name("skinjob"))
"""The command as it is installed: `python -m` would look for modules in the working folder."""


def rename_class(project: Path) -> None:
    for split in ("train", "test"):
        (project / "skin_cancer" / split / "malignant").rename(
            project / "skin_cancer" / split / CLASS
        )


@pytest.fixture
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a locale in which é is one byte, made for the test."""
    folder = tmp_path_factory.mktemp("locale")
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"]
    if shutil.which("localedef") is None or subprocess.run(words, capture_output=True).returncode:
        if os.environ.get("SKINJOB_REQUIRE_SLURM") == "1":
            pytest.fail("no localedef here", pytrace=False)
        pytest.skip("no localedef here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.mark.train
def test_no_module_in_the_users_folder_is_taken_for_pythons(project: Path) -> None:
    """A random.py beside the images, as anybody may have, has no part in a job."""
    for name in SHADOWS:
        (project / name).write_text("value = 4\n")
    environment = os.environ | import_path()
    words = [SKINJOB, "submit", *LOCAL, "--wait"]
    result = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_nodes_link_module_and_locale_change_nothing(
    slurm: Slurm, project: Path, latin1: dict[str, str]
) -> None:
    """A job finds what submit has checked, wherever the login node's links lead.

    On the login node home is a link to disk/; the node has home as a folder and no disk.
    """
    rename_class(project)
    home, base = project / "home", project.parent
    home.mkdir()
    for name in ("skin_cancer", "weights"):
        (project / name).rename(home / name)
    (home / "random.py").write_text("value = 4\n")
    kept = base / f"kept-{project.name}"
    kept.mkdir()
    setup = " ".join(f"{name}={value}" for name, value in latin1.items())
    lines = ("--setup", f"export {setup}", "--setup", "test -f random.py || exit 9")
    submit = [SKINJOB, "submit", *SMALL, *lines]
    probe = [
        SKINJOB,
        "doctor",
        *SMALL,
        "--probe",
        "--json",
        "--data",
        f"{project}/disk/skin_cancer",
    ]
    script = f"""
        mount --bind {home} {kept} && mount -t tmpfs tmpfs {project} && mkdir {project}/disk &&
        mount --bind {kept} {project}/disk && ln -s disk {home} && cd {home} &&
        {{ {shlex.join(probe)} >{kept}/probe.json; {shlex.join(submit)}; }}
    """
    login = ["unshare", "--mount", "--propagation=private", "bash", "-c", script]
    environment = import_path()
    result = slurm.run(login, cwd=project, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    unseen = f"cannot read {project}/disk/skin_cancer"
    assert unseen in (home / "probe.json").read_text(), "a path that only this machine has"
    sweep = only_sweep(home / "runs")
    (job,) = sweep.info().jobs.values()
    slurm.wait(job)
    (run,) = sweep.runs()
    output = "".join(file.read_text() for file in sweep.submission_folder.glob("*_log.out"))
    assert run.state().status == "done", output
    assert str(run.config().data) == str(home / "skin_cancer")
    assert CLASS in run.log_file.read_text(encoding="utf-8")
    assert CLASS in run.predictions_file.read_text(encoding="utf-8")


@pytest.mark.train
def test_a_project_that_was_moved_goes_on(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Runs that are queued again use the paths that were checked and printed now."""
    failing = skinjob("submit", *LOCAL, "--setup", "exit 3", "--wait", cwd=project)
    assert failing.returncode == 1
    (run,) = only_sweep(project / "runs").runs()
    moved = tmp_path_factory.mktemp("moved") / "project"
    project.rename(moved)
    plan = skinjob("retry", run.sweep.name, "--dry-run", cwd=moved).stdout
    assert f"data = {moved / 'skin_cancer'}" in plan, plan
    result = skinjob("submit", *LOCAL, "--wait", cwd=moved)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = only_sweep(moved / "runs").runs()
    assert run.state().status == "done"
    assert run.config().data == str(moved / "skin_cancer")


@pytest.mark.train
def test_names_in_another_locale_are_the_same_names(project: Path, latin1: dict[str, str]) -> None:
    """A shell that is not UTF-8 changes no path, neither on the login node nor in a job."""
    rename_class(project)
    environment = os.environ | latin1 | import_path()
    for arguments in (["submit", *LOCAL, "--wait"], ["status"], ["report"]):
        result = subprocess.run(
            [SKINJOB, *arguments], cwd=project, env=environment, capture_output=True
        )
        assert result.returncode == 0, result.stderr
    sweep = only_sweep(project / "runs")
    assert sweep.info().images.classes == ("benign", CLASS)
    assert CLASS in (sweep.report_folder / "index.html").read_text(encoding="utf-8")


def test_an_early_death_of_a_local_queue_says_why(project: Path) -> None:
    """The last words of a local queue are shown at once as the reason."""
    (project / "site").mkdir()
    (project / "site/sitecustomize.py").write_text(
        "import sys\n"
        "if 'skinjob.queues.local' in sys.orig_argv:\n"
        "    sys.exit('No module named skinjob_of_mine')\n"
    )
    path = ":".join([str(project / "site"), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "skinjob"]
    subprocess.run([*command, "submit", *LOCAL], cwd=project, env=environment, check=True)
    sweep = only_sweep(project / "runs")
    wait_until(lambda: set(status_by_run(sweep).values()) == {"failed"}, timeout_s=30)
    shown = skinjob("status", cwd=project).stdout
    assert "No module named skinjob_of_mine" in shown


@pytest.mark.train
def test_a_killed_local_queue_is_seen_by_its_lock(project: Path) -> None:
    """After SIGKILL of all processes status says so at once, and submit and retry go on."""
    for again in (("submit", *LOCAL, "--wait"), ("retry", "n", "--wait")):
        shutil.rmtree(project / "runs", ignore_errors=True)
        assert skinjob("submit", *LOCAL, "--name", "n", cwd=project).returncode == 0
        kill_all(project)
        sweep = Sweep(project / "runs/n")
        assert sweep.runs()[0].state().status == "waiting", "killed before the run began"
        assert set(status_by_run(sweep).values()) == {"failed"}
        result = skinjob(*again, cwd=project)
        assert result.returncode == 0, result.stdout + result.stderr
        assert set(status_by_run(sweep).values()) == {"done"}


def kill_all(project: Path) -> None:
    """Kills every process that has the project in its command line, at once."""
    end = time.monotonic() + 5
    found = True
    while found or time.monotonic() < end - 4.5:
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(project).encode() in command and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
                found = True
        time.sleep(0.01)
