"""`skinjob submit` on a machine without SLURM, with the real command and the real local queue."""

from __future__ import annotations

import csv
import fcntl
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import (
    SMALL,
    import_path,
    only_sweep,
    recorded,
    refusal,
    skinjob,
    status_by_run,
    wait_for,
)
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.local import queue_lock, start_queue
from skinjob.sweeps.layout import Run, sweeps


@pytest.mark.train
def test_submit_returns_at_once_and_the_runs_train_here(project: Path) -> None:
    """Without SLURM the runs train on this machine in a single process, and each writes its CSV."""
    result = skinjob("submit", *SMALL, cwd=project)
    assert result.returncode == 0, result.stderr
    sweep = only_sweep(project / "runs")
    assert "done" not in status_by_run(sweep).values()  # it did not wait
    for words in (
        "8 benign, 8 malignant",
        "bs0004-lr0.01-seed0",
        "bs0008-lr0.01-seed0",
        "skinjob report runs/",
    ):
        assert words in result.stdout
    wait_for(sweep, "done")
    first, second = (run.state() for run in sweep.runs())
    assert first.pid == second.pid
    for run in sweep.runs():
        with run.metrics_file.open(newline="") as rows:
            assert [row["epoch"] for row in csv.DictReader(rows)] == ["1", "2"]
    assert set(sweep.info().jobs) == {"bs0004-lr0.01-seed0", "bs0008-lr0.01-seed0"}


@pytest.mark.train
def test_jobs_outlive_the_terminal_that_submitted_them(project: Path) -> None:
    """A login shell that closes, or a connection that breaks, stops no run."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project)
        os.environ["PYTHONPATH"] = ":".join(sys.path)
        command = shlex.join([sys.executable, "-m", "skinjob", "submit", *SMALL])
        os.execvp("bash", ["bash", "-c", f"{command}; sleep 600"])
    output = b""
    while b"skinjob report" not in output:
        output += os.read(terminal, 4096)
    assert b"skinjob status runs/" in output
    os.close(terminal)  # its session gets SIGHUP
    assert os.waitpid(pid, 0)[1] == signal.SIGHUP
    wait_for(only_sweep(project / "runs"), "done")


def test_a_status_does_not_stop_a_queue_from_starting(project: Path) -> None:
    """A queue starts even if `skinjob status` looks at the sweep at that moment."""
    sweep = make_sweep(
        project / "skin_cancer", project / "weights/resnet18.safetensors", project / "runs"
    )
    run = sweep.runs()[0]
    run.update_state(status="done")
    with queue_lock(sweep).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        looked = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
        looked.start()
        pid = start_queue(sweep, [])
        looked.join()
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.train
def test_wait_returns_when_all_runs_have_ended(trained: Path) -> None:
    """With --wait, submit returns after the last run; exit code 0 means that all are done."""
    sweep = only_sweep(trained / "runs")  # of a `submit --wait` that had exit code 0
    assert set(status_by_run(sweep).values()) == {"done"}
    assert stat.S_IMODE(sweep.submission_folder.stat().st_mode) == 0o700, "jobs execute its pickles"


@pytest.mark.train
def test_the_same_submit_again_repeats_nothing(finished: Path) -> None:
    """A finished run is never trained twice, even if it is submitted again on another day."""
    sweep = only_sweep(finished / "runs")
    sweep.folder.rename(sweep.folder.with_name("2020-01-01-old"))
    sweep = only_sweep(finished / "runs")
    before = [(run.metrics_file.stat().st_mtime_ns, run.state()) for run in sweep.runs()]
    result = skinjob("submit", *SMALL, cwd=finished)
    assert result.returncode == 0
    assert result.stdout.count("not repeated") == 2
    assert [(run.metrics_file.stat().st_mtime_ns, run.state()) for run in sweep.runs()] == before
    assert len(sweeps(finished / "runs")) == 1


@pytest.mark.train
def test_the_same_submit_queues_only_what_is_missing(finished: Path) -> None:
    """After a failure it trains the failed run; a sweep can grow by runs; finished runs stay."""
    sweep = only_sweep(finished / "runs")
    done, failed = sweep.runs()
    before = done.state().finished_utc
    failed.update_state(status="failed")
    grown = ("--batch-sizes", "8,16", *SMALL[2:], "--name", sweep.name)
    skinjob("submit", *grown, "--wait", cwd=finished, code=0)
    assert failed.state().status == "done"
    assert done.state().finished_utc == before
    info = only_sweep(finished / "runs").info()
    names = ("bs0004-lr0.01-seed0", "bs0008-lr0.01-seed0", "bs0016-lr0.01-seed0")
    assert (info.batch_sizes, info.runs) == ((4, 8, 16), names)


def test_a_second_recipe_cannot_use_the_name_of_a_sweep(project: Path) -> None:
    """Numbers of two recipes are never mixed in a sweep."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    name = make_sweep(data, weights, project / "runs").name
    other = skinjob("submit", *SMALL, "--name", name, "--epochs", "3", cwd=project)
    assert "exists, with another recipe" in refusal(other)


@pytest.mark.train
def test_a_killed_job_fails_its_run(project: Path) -> None:
    """After kill -9 the run is not shown as running, and the queue continues with the next job."""
    skinjob("submit", *SMALL[:2], "--epochs", "2000", *SMALL[4:], "--train", "all", cwd=project)
    first, second = only_sweep(project / "runs").runs()
    kill_when_running(first)
    kill_when_running(second)
    wait_for(first.sweep, "failed")
    assert first.state().failure == "killed"


@pytest.mark.train
def test_a_job_that_gets_a_signal_leaves_at_once_and_continues_later(project: Path) -> None:
    """SIGTERM, as `kill` sends it, costs at most an epoch; a preempted job continues by itself.

    After kill -9 of a job all its runs have failed.
    """
    long = (*SMALL[:2], "--epochs", "2000", *SMALL[4:])
    skinjob("submit", *long, cwd=project)
    first, second = only_sweep(project / "runs").runs()
    os.kill(pid_after_an_epoch(first, attempts=1), signal.SIGUSR2)
    os.kill(pid_after_an_epoch(first, attempts=2), signal.SIGTERM)
    wait_for(first.sweep, "failed")
    state = first.state()
    assert (state.failure, state.attempts) == ("killed", 2)
    assert "was killed by signal 15 (SIGTERM" in str(state.reason)
    skinjob("submit", *long, cwd=project)
    assert first.state().epoch >= state.epoch  # finished epochs count, also while the run waits
    os.kill(pid_after_an_epoch(first, attempts=1), signal.SIGKILL)
    assert first.state().resumed_epoch >= state.epoch
    wait_for(first.sweep, "failed")
    assert first.state().pid == second.state().pid
    log = first.log_file.read_text()
    assert "preempted: leaves, to be queued again" in log
    assert "SIGTERM: leaves" in log
    assert log.count("checkpoint: continues after epoch") == 2


def pid_after_an_epoch(run: Run, attempts: int) -> int:
    """Waits until a process has finished an epoch of the run, and returns the process."""
    end = time.monotonic() + 90
    while True:
        state = run.state()
        if state.pid and state.attempts == attempts and state.epoch > state.resumed_epoch:
            return state.pid
        assert time.monotonic() < end, state
        time.sleep(0.02)


@pytest.mark.train
def test_a_damaged_state_is_an_error_with_a_fix(finished: Path) -> None:
    """A power cut may leave an empty state.json; after the fix the run can be queued again."""
    run = only_sweep(finished / "runs").runs()[0]
    run.state_file.write_text("")
    result = skinjob("submit", *SMALL, cwd=finished)
    assert "its state cannot be read" in refusal(result)
    subprocess.run(
        result.stderr.splitlines()[1].removeprefix("fix:"), shell=True, check=True, cwd=finished
    )
    result = skinjob("submit", *SMALL, "--wait", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert run.state().status == "done"


def kill_when_running(run: Run) -> None:
    """Waits until a process trains the run, and kills the process."""
    end = time.monotonic() + 60
    while (pid := run.state().pid) is None:
        assert time.monotonic() < end, run.state()
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


def test_dry_run_makes_nothing(project: Path) -> None:
    """--dry-run prints the whole configuration and leaves no trace."""
    result = skinjob("submit", *SMALL, "--dry-run", cwd=project)
    assert result.returncode == 0
    for words in ("epochs = 2", "device = cpu", "bs0008-lr0.01-seed0", "nothing was made"):
        assert words in result.stdout
    assert not (project / "runs").exists()


def test_flag_environment_and_job_file_have_an_order(project: Path) -> None:
    """A flag wins over the environment, the environment over the job file."""
    (project / "jobs").mkdir()
    (project / "jobs/default.toml").write_text("[train]\nupdates = 9\nlr = 0.3\nseeds = [5]\n")
    result = skinjob(
        "submit", "--dry-run", "--lr", "0.1", "--cluster", "local", "--batch-sizes", "4",
        cwd=project,
        SKINJOB_SUBMIT_EPOCHS="4", SKINJOB_SUBMIT_LR="0.2", SKINJOB_SUBMIT_MEM="3",
        SKINJOB_SUBMIT_SETUP="module load cuda\nulimit -c 0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for words in (
        "epochs = 4",
        "bs0004-lr0.1-seed5",
        "mem_gb = 3.0",
        "setup = ('module load cuda', 'ulimit -c 0')",
    ):
        assert words in result.stdout
    assert "updates = " not in result.stdout, "the environment's epochs replace them"


def test_a_job_file_can_set_what_options_can(project: Path) -> None:
    """Every key of a job file reaches the runs; none is ignored."""
    (project / "job.toml").write_text(
        "[train]\ntrain = 'all'\nlr = [0.5, 0.25]\nschedule = 'constant'\nepochs = 3\n"
        "batch_sizes = [4]\nseeds = [7]\nprecision = 'fp32'\n"
        "[cluster]\ncluster = 'local'\ncpus = 3\n"
    )
    result = skinjob("submit", "--job", "job.toml", "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    for words in (
        "train = all",
        "schedule = constant",
        "epochs = 3",
        "precision = fp32",
        "cpus = 3",
        "bs0004-lr0.5-seed7",
        "bs0004-lr0.25-seed7",
    ):
        assert words in result.stdout


def test_a_full_disk_is_an_error_and_leaves_no_sweep(project: Path) -> None:
    """If the sweep's folder cannot be written, nothing is queued."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = project / "small"
    small.mkdir()
    assert os.system(f"mount -t tmpfs -o nr_inodes=4 tmpfs '{small}'") == 0
    try:
        result = skinjob("submit", *SMALL, "--runs", small, cwd=project)
        assert "No space left on device" in refusal(result)
        assert not sweeps(small)
    finally:
        os.system(f"umount '{small}'")


def test_a_local_sweep_without_torch_is_refused(project: Path) -> None:
    """Without torch, a sweep for this machine is refused before it is queued."""
    hidden = project / "hidden"
    hidden.mkdir()
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        f"from skinjob.cli import main; main(['submit', *{list(SMALL)!r}])\n"
    )
    (hidden / "no_torch.py").write_text(code)
    result = subprocess.run(
        [sys.executable, hidden / "no_torch.py"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | import_path(),
    )
    assert "needs torch" in refusal(result)


@pytest.mark.train
def test_a_job_whose_python_has_no_torch_says_so(project: Path) -> None:
    """A run whose Python cannot load torch is failed, not lost, and the fix is --python."""
    (project / "broken").mkdir()
    (project / "broken/torch.py").write_text("raise ImportError('no torch here')\n")
    python = project / "python-without-torch"
    path = ":".join([str(project / "broken"), *sys.path])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = skinjob("submit", *SMALL, "--python", python, "--wait", cwd=project)
    assert result.returncode == 1
    for run in only_sweep(project / "runs").runs():
        state = run.state()
        assert state.status == "failed"
        assert "cannot load torch: ImportError: no torch here" in str(state.reason)
        assert "--python" in str(state.fix)


@pytest.mark.train
def test_train_trains_a_submitted_run_in_the_foreground(finished: Path) -> None:
    """The user can watch a run train without a queue."""
    run = only_sweep(finished / "runs").runs()[0]
    assert "is done" in refusal(skinjob("train", run.folder, cwd=finished))
    run.update_state(status="failed")
    run.metrics_file.unlink()
    result = skinjob("train", run.folder, cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2" in result.stdout
    assert run.metrics_file.exists()


@pytest.mark.parametrize(
    "options",
    [
        "--partition lab",
        "--account lab",
        "--qos short",
        "--constraint a100",
        "--reservation r",
        "--nodelist n1",
        "--exclude n1",
        "--wckey w",
        "--gpu-type a100",
        "--mail me@example.org",
        "--sbatch=--hint=nomultithread",
    ],
)
def test_an_option_for_slurm_needs_sbatch(project: Path, options: str) -> None:
    """Without sbatch on PATH, a sweep with options for SLURM does not train on the login node."""
    small = ("--batch-sizes", "4", "--device", "cpu", "--dry-run", *options.split())
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result) == f"{options} asks for SLURM, and there is no sbatch on PATH"
    assert "fix:   module load slurm" in result.stderr
    here = skinjob("submit", *small, "--cluster", "local", cwd=project, PATH="/nonexistent")
    assert here.returncode == 0, here.stderr


def test_a_site_profile_or_an_old_sweep_for_slurm_needs_sbatch(project: Path) -> None:
    """An option in a profile counts like a flag; a sweep of SLURM is not continued here."""
    small = ("--batch-sizes", "4", "--device", "cpu", "--name", "s")
    (project / "jobs").mkdir()
    (project / "jobs/site.toml").write_text('[cluster]\npartition = "lab"\n')
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result).startswith("--partition lab asks for SLURM")
    checklist = skinjob("doctor", *small, cwd=project, PATH="/nonexistent").stdout
    assert re.search(r"^fail +commands +not on PATH: sbatch", checklist, re.M)
    (project / "jobs/site.toml").unlink()
    skinjob("submit", *small, "--cluster", "local", "--setup", "exit 3", "--wait", cwd=project)
    sweep = only_sweep(project / "runs")
    info = recorded(sweep)
    write_json(sweep.sweep_file, info | {"cluster": {**info["cluster"], "cluster": "slurm"}})
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result) == "runs/s was submitted to SLURM, but there is no sbatch on PATH"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("chosen", ["NoDevFiles", "0"])
def test_submit_uses_the_cpu_if_the_job_has_no_gpu(project: Path, chosen: str) -> None:
    """In a SLURM job without a GPU a sweep trains on the CPU; --device cuda is refused."""
    small = ("--cluster", "local", "--batch-sizes", "4", "--dry-run")
    result = skinjob("submit", *small, cwd=project, CUDA_VISIBLE_DEVICES=chosen)
    assert "device   cpu (auto: this machine has no GPU)" in result.stdout, result.stderr
    refused = skinjob(
        "submit", *small, "--device", "cuda", cwd=project, CUDA_VISIBLE_DEVICES=chosen
    )
    assert refusal(refused) == "device cuda was asked for and this machine has no GPU"
