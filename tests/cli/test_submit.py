"""`skinjob submit` on a machine without SLURM: the real command, the real local executor."""

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
from commands import import_path, only_sweep, recorded, refusal, skinjob, status_by_run, wait_for
from trees import make_sweep

from skinjob.files import write_json
from skinjob.queues.local import LocalQueue, queue_lock, start_queue
from skinjob.sweeps.layout import Run, sweeps

SMALL = ("--batch-sizes", "4,8", "--epochs", "2", "--cluster", "local")


@pytest.mark.train
def test_submit_returns_at_once_and_the_runs_train_here(project: Path) -> None:
    """Without SLURM the runs train here, all in one process, and each writes its CSV."""
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
    """A login shell that closes, or a connection that breaks, ends no run."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project)
        os.environ["PYTHONPATH"] = ":".join(sys.path)
        command = shlex.join([sys.executable, "-m", "skinjob", "submit", *SMALL])
        os.execvp("bash", ["bash", "-c", f"{command}; sleep 600"])
    said = b""
    while b"skinjob report" not in said:
        said += os.read(terminal, 4096)
    assert b"skinjob status runs/" in said
    os.close(terminal)  # its session is sent SIGHUP
    assert os.waitpid(pid, 0)[1] == signal.SIGHUP
    wait_for(only_sweep(project / "runs"), "done")


def test_a_look_at_a_sweep_does_not_make_it_busy(project: Path) -> None:
    """`skinjob status` just when a queue starts does not keep it from starting."""
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
def test_wait_returns_when_all_have_ended(project: Path) -> None:
    """With --wait the exit code says whether every run is done."""
    assert skinjob("submit", *SMALL, "--wait", cwd=project).returncode == 0
    assert set(status_by_run(only_sweep(project / "runs")).values()) == {"done"}


@pytest.mark.train
def test_the_same_submit_again_repeats_nothing(project: Path) -> None:
    """A finished run is never trained twice, whatever day it is submitted again."""
    skinjob("submit", *SMALL, "--wait", cwd=project)
    sweep = only_sweep(project / "runs")
    sweep.folder.rename(sweep.folder.with_name("2020-01-01-old"))
    sweep = only_sweep(project / "runs")
    before = [(run.metrics_file.stat().st_mtime_ns, run.state()) for run in sweep.runs()]
    result = skinjob("submit", *SMALL, cwd=project)
    assert result.returncode == 0
    assert result.stdout.count("not repeated") == 2
    assert [(run.metrics_file.stat().st_mtime_ns, run.state()) for run in sweep.runs()] == before
    assert len(sweeps(project / "runs")) == 1


@pytest.mark.train
def test_a_failed_run_alone_is_queued_again(project: Path) -> None:
    """After a failure the same command trains what is missing and nothing else."""
    skinjob("submit", *SMALL, "--wait", cwd=project)
    sweep = only_sweep(project / "runs")
    done, failed = sweep.runs()
    finished = done.state().finished_utc
    failed.update_state(status="failed")
    result = skinjob("submit", *SMALL, "--wait", cwd=project)
    assert result.returncode == 0, result.stderr
    assert failed.state().status == "done"
    assert done.state().finished_utc == finished


@pytest.mark.train
def test_more_batch_sizes_join_a_named_sweep(project: Path) -> None:
    """A sweep can grow: runs that are there stay, new ones are added."""
    skinjob("submit", *SMALL, "--name", "mine", "--wait", cwd=project)
    grown = ("--batch-sizes", "8,16", "--epochs", "2", "--cluster", "local", "--name", "mine")
    assert skinjob("submit", *grown, "--wait", cwd=project).returncode == 0
    info = only_sweep(project / "runs").info()
    names = ("bs0004-lr0.01-seed0", "bs0008-lr0.01-seed0", "bs0016-lr0.01-seed0")
    assert (info.batch_sizes, info.runs) == ((4, 8, 16), names)


@pytest.mark.train
def test_a_name_is_not_shared_by_two_recipes(project: Path) -> None:
    """Numbers of two recipes never land in one sweep."""
    skinjob("submit", *SMALL, "--name", "mine", "--wait", cwd=project)
    other = skinjob("submit", *SMALL, "--name", "mine", "--epochs", "3", cwd=project)
    assert "exists, with another recipe" in refusal(other)


@pytest.mark.train
def test_a_killed_job_is_failed_and_not_running_for_ever(project: Path) -> None:
    """kill -9 on a job leaves states that say so, and the queue goes on with the next job."""
    skinjob("submit", *SMALL[:2], "--epochs", "200", *SMALL[4:], "--train", "all", cwd=project)
    first, second = only_sweep(project / "runs").runs()
    kill_once_at_work(first)
    kill_once_at_work(second)
    wait_for(first.sweep, "failed")
    assert first.state().failure == "killed"


@pytest.mark.train
def test_a_job_that_is_told_to_end_leaves_at_once_and_goes_on_later(project: Path) -> None:
    """SIGTERM, as `kill` sends it, costs the epoch at most; preempted, it goes on by itself."""
    long = (*SMALL[:2], "--epochs", "200", *SMALL[4:])
    skinjob("submit", *long, cwd=project)
    first, _ = only_sweep(project / "runs").runs()
    os.kill(pid_after_an_epoch(first, attempts=1), signal.SIGUSR2)
    os.kill(pid_after_an_epoch(first, attempts=2), signal.SIGTERM)
    wait_for(first.sweep, "failed")
    state = first.state()
    assert (state.failure, state.attempts) == ("killed", 2)
    assert "was killed by signal 15 (SIGTERM" in str(state.reason)
    skinjob("submit", *long, cwd=project)
    assert first.state().epoch >= state.epoch  # what is finished counts, also while it waits
    os.kill(pid_after_an_epoch(first, attempts=1), signal.SIGKILL)
    assert first.state().resumed_epoch >= state.epoch
    wait_for(first.sweep, "failed")
    log = first.log_file.read_text()
    assert "preempted: leaves, to be queued again" in log
    assert "SIGTERM: leaves" in log
    assert log.count("checkpoint: continues after epoch") == 2


def pid_after_an_epoch(run: Run, attempts: int) -> int:
    """Returns the process that has a run in hand, once it has finished an epoch of it."""
    end = time.monotonic() + 90
    while True:
        state = run.state()
        if state.pid and state.attempts == attempts and state.epoch > state.resumed_epoch:
            return state.pid
        assert time.monotonic() < end, state
        time.sleep(0.02)


@pytest.mark.train
def test_a_state_that_does_not_read_is_told_with_what_mends_it(project: Path) -> None:
    """A power cut may leave it empty; removed, as is said, the run is queued again."""
    skinjob("submit", *SMALL, "--wait", cwd=project)
    run = only_sweep(project / "runs").runs()[0]
    LocalQueue().require_free(run.sweep)  # its queue takes some seconds to leave
    run.state_file.write_text("")
    result = skinjob("submit", *SMALL, cwd=project)
    assert "its state cannot be read" in refusal(result)
    subprocess.run(
        result.stderr.splitlines()[1].removeprefix("fix:"), shell=True, check=True, cwd=project
    )
    result = skinjob("submit", *SMALL, "--wait", cwd=project)
    assert result.returncode == 0, result.stderr
    assert run.state().status == "done"


@pytest.mark.train
def test_two_submits_at_once_queue_a_sweep_once(project: Path) -> None:
    """The second of two people, or of two terminals, finds what the first has queued."""
    command = [sys.executable, "-m", "skinjob", "submit", *SMALL]
    environment = os.environ | import_path()
    both = [
        subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = "".join(str(one.communicate()[0]) for one in both)
    assert [one.returncode for one in both] == [0, 0]
    assert said.count("not repeated") == 2
    wait_for(only_sweep(project / "runs"), "done")


@pytest.mark.train
def test_a_killed_job_fails_all_its_runs(project: Path) -> None:
    """The heads that share a job share its end."""
    skinjob("submit", *SMALL[:2], "--epochs", "2000", *SMALL[4:], cwd=project)
    first, second = only_sweep(project / "runs").runs()
    kill_once_at_work(second)
    wait_for(first.sweep, "failed")
    assert first.state().pid == second.state().pid


def kill_once_at_work(run: Run) -> None:
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


def test_job_file_flag_and_environment_take_their_turn(project: Path) -> None:
    """A flag wins over the environment, the environment over the job file."""
    (project / "jobs").mkdir()
    (project / "jobs/default.toml").write_text("[train]\nepochs = 3\nlr = 0.3\nseeds = [5]\n")
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


def test_a_job_file_may_say_all_that_options_can(project: Path) -> None:
    """Every key of a job file reaches the runs, and none is passed over in silence."""
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


def test_a_fraction_of_an_epoch_in_a_job_file_is_refused(project: Path) -> None:
    """A job file's 2.9 epochs are not quietly cut down to 2."""
    (project / "job.toml").write_text("[train]\nepochs = 2.9\n")
    result = skinjob("submit", "--job", "job.toml", "--cluster", "local", cwd=project)
    assert "epochs is 2.9, and must be a whole number" in refusal(result)


@pytest.mark.train
def test_submission_folder_is_private(project: Path) -> None:
    """Whoever can write where the pickles lie runs code as the user: nobody else can."""
    skinjob("submit", *SMALL, "--wait", cwd=project)
    folder = only_sweep(project / "runs").submission_folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.train
def test_runs_folder_may_have_spaces_and_quotes(project: Path) -> None:
    """Paths go through shells, JSON and Python unharmed."""
    runs = project / """it's "my" runs"""
    result = skinjob("submit", *SMALL, "--runs", runs, "--wait", cwd=project)
    assert result.returncode == 0, result.stderr
    assert set(status_by_run(only_sweep(runs)).values()) == {"done"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-sizes", "0"], "batch size is 0"),
        (["--batch-sizes", "4,17"], "batch size 17 is more than the 16 training images"),
        (["--batch-sizes", "4,4"], "--batch-sizes has a value twice: [4, 4]"),
        (["--epochs", "0"], "epochs is 0"),
        (["--lr", "nan"], "lr is nan"),
        (["--lr", "0"], "lr is 0.0"),
        (["--lr", "0.1,0.10"], "--lr has a value twice: [0.1, 0.1]"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--job", "nowhere.toml"], "job file nowhere.toml: no such file"),
        (["--name", "a/b"], "'a/b' is not a plain folder name"),
        (["--device", "cuda"], "this machine has no GPU"),
    ],
)
def test_a_bad_value_gives_two_lines_and_makes_nothing(
    project: Path, arguments: list[str], words: str
) -> None:
    """What can be known on the login node is said there, in two lines, and nothing is left."""
    if "cuda" in arguments and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    result = skinjob("submit", "--batch-sizes", "4", "--cluster", "local", *arguments, cwd=project)
    assert words in refusal(result)
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "--batch-sizes", "32,abc"], "'abc' in '32,abc' is no list of whole numbers"),
        (["submit", "--seeds", "5-1"], "'5-1' in '5-1' is no list"),
        (["submit", "--lr", "0.1,x"], "'0.1,x' is no list of numbers"),
        (["submit", "--epochs", "many"], "many"),
        (["submit", "--epoch", "3"], "--epoch"),
        (["sumbit"], "sumbit"),
        (["train"], "RUN"),
    ],
)
def test_usage_gives_two_lines_and_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    """A slip on the command line is answered with what was written and where the help is."""
    result = skinjob(*arguments, cwd=tmp_path)
    assert words in refusal(result, code=2)
    assert "--help" in result.stderr


def test_one_flipped_byte_in_the_weights_is_refused(project: Path) -> None:
    """Weights that were damaged on the way are found before the queue."""
    file = project / "weights/resnet18.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "SHA-256" in refusal(skinjob("submit", *SMALL, cwd=project))


def test_a_full_disk_is_said_and_leaves_no_sweep(project: Path) -> None:
    """When the sweep's folder cannot be written, nothing is queued."""
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


def test_without_torch_the_local_machine_is_refused(project: Path) -> None:
    """In the base install a local sweep is not queued only to fail."""
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
    """A run that could not start names the Python that was at fault, and is failed, not lost."""
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
def test_train_runs_a_submitted_run_in_the_foreground(project: Path) -> None:
    """A run can be looked at while it trains, without any queue."""
    skinjob("submit", *SMALL, "--wait", cwd=project)
    run = only_sweep(project / "runs").runs()[0]
    assert "is done" in refusal(skinjob("train", run.folder, cwd=project))
    run.update_state(status="failed")
    run.metrics_file.unlink()
    result = skinjob("train", run.folder, cwd=project)
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2" in result.stdout
    assert run.metrics_file.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """`skinjob train` on something else says what is missing in it."""
    assert "is not a run: no config.json in it" in refusal(skinjob("train", tmp_path, cwd=tmp_path))


def test_report_without_a_sweep_says_how_to_make_one(tmp_path: Path) -> None:
    """The next command is never a riddle."""
    assert "no sweep in runs/" in refusal(skinjob("report", cwd=tmp_path))


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
def test_what_is_asked_of_slurm_is_not_done_on_this_machine(project: Path, options: str) -> None:
    """Without sbatch on PATH nothing trains on the login node against what was asked for."""
    small = ("--batch-sizes", "4", "--device", "cpu", "--dry-run", *options.split())
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result) == f"{options} asks for SLURM, and there is no sbatch on PATH"
    assert "fix:   module load slurm" in result.stderr
    here = skinjob("submit", *small, "--cluster", "local", cwd=project, PATH="/nonexistent")
    assert here.returncode == 0, here.stderr


def test_a_site_profile_and_a_sweep_of_slurm_keep_to_slurm(project: Path) -> None:
    """A profile asks as a flag does; a sweep whose jobs are SLURM's is not taken up here."""
    small = ("--batch-sizes", "4", "--device", "cpu", "--name", "s")
    (project / "jobs").mkdir()
    (project / "jobs/site.toml").write_text('[cluster]\npartition = "lab"\n')
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result).startswith("--partition lab asks for SLURM")
    found = skinjob("doctor", *small, cwd=project, PATH="/nonexistent").stdout
    assert re.search(r"^fail +commands +not on PATH: sbatch", found, re.M)
    (project / "jobs/site.toml").unlink()
    skinjob("submit", *small, "--cluster", "local", "--setup", "exit 3", "--wait", cwd=project)
    sweep = only_sweep(project / "runs")
    info = recorded(sweep)
    write_json(sweep.sweep_file, info | {"cluster": {**info["cluster"], "cluster": "slurm"}})
    result = skinjob("submit", *small, cwd=project, PATH="/nonexistent")
    assert refusal(result) == "runs/s was submitted to SLURM, but there is no sbatch on PATH"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("chosen", ["NoDevFiles", "0"])
def test_submit_takes_the_cpu_where_no_gpu_may_be_used_and_says_so(
    project: Path, chosen: str
) -> None:
    """In a SLURM job without a GPU a sweep trains on the CPU; --device cuda is refused."""
    small = ("--cluster", "local", "--batch-sizes", "4", "--dry-run")
    result = skinjob("submit", *small, cwd=project, CUDA_VISIBLE_DEVICES=chosen)
    assert "device   cpu (auto: this machine has no GPU)" in result.stdout, result.stderr
    refused = skinjob(
        "submit", *small, "--device", "cuda", cwd=project, CUDA_VISIBLE_DEVICES=chosen
    )
    assert refusal(refused) == "device cuda was asked for and this machine has no GPU"
