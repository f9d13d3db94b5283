"""The node of a job differs from the login node: in links, folders, modules and the locale.

Some tests are about a queue of this machine that ended early. Links, moves, kills and the locale
are real.
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
"""The installed command: `python -m` would look for modules in the working folder."""


def rename_class(project: Path) -> None:
    for split in ("train", "test"):
        (project / "skin_cancer" / split / "malignant").rename(
            project / "skin_cancer" / split / CLASS
        )


@pytest.fixture
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a locale in which é is a single byte; the locale is made for the test."""
    folder = tmp_path_factory.mktemp("locale")
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"]
    if shutil.which("localedef") is None or subprocess.run(words, capture_output=True).returncode:
        if os.environ.get("SKINJOB_REQUIRE_SLURM") == "1":
            pytest.fail("no localedef here", pytrace=False)
        pytest.skip("no localedef here")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.mark.train
def test_a_job_imports_no_module_of_the_users_folder(project: Path) -> None:
    """A random.py beside the images, as any user may have, is not imported by a job."""
    for name in SHADOWS:
        (project / name).write_text("value = 4\n")
    environment = os.environ | import_path()
    words = [SKINJOB, "submit", *LOCAL, "--wait"]
    result = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_nodes_links_modules_and_locale_change_nothing(
    slurm: Slurm, project: Path, latin1: dict[str, str]
) -> None:
    """A job finds the files that submit has checked, also if a link is different on its node.

    On the login node, home/ is a link to disk/. The node has home/ as a folder and no disk/.
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
    assert unseen in (home / "probe.json").read_text(), "only the login node has this path"
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
def test_a_project_that_was_moved_continues(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Runs that are queued again use the new paths, which are checked and printed again."""
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
def test_another_locale_changes_no_name(project: Path, latin1: dict[str, str]) -> None:
    """A shell without UTF-8 changes no path, neither on the login node nor in a job."""
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


def test_a_local_queue_that_dies_early_says_why(project: Path) -> None:
    """`status` shows the last output of a local queue as the reason at once."""
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
def test_status_notices_a_killed_local_queue_by_its_lock(project: Path) -> None:
    """After SIGKILL of all processes the run is failed at once; submit and retry continue it."""
    for name, again in (("n", ("submit", *LOCAL, "--wait")), ("m", ("retry", "m", "--wait"))):
        assert skinjob("submit", *LOCAL, "--name", name, cwd=project).returncode == 0
        kill_all(project)
        sweep = Sweep(project / "runs" / name)
        assert sweep.runs()[0].state().status == "waiting", "killed before the run began"
        assert set(status_by_run(sweep).values()) == {"failed"}
        result = skinjob(*again, cwd=project)
        assert result.returncode == 0, result.stdout + result.stderr
        assert set(status_by_run(sweep).values()) == {"done"}


def kill_all(project: Path) -> None:
    """Kills every process that has the project in its command line, until none is left."""
    end = time.monotonic() + 5
    is_alive = True
    while is_alive or time.monotonic() < end - 4.5:
        is_alive = False
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(project).encode() in command and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
                is_alive = True
        time.sleep(0.01)
