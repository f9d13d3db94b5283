"""Why a run ended on a real SLURM: each failure is caused in a real job, and `status` shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cluster import Slurm
from commands import recorded, wait_until
from trees import make_tree

from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState

LONG = ("--epochs", "2000", "--device", "cpu", "--cpus", "1")
CANCELLED, STEP_KILLED, KILLED, SEGFAULT = (f"bs{size:04d}-lr0.01-seed0" for size in (1, 2, 4, 8))
LONG_AGO = "2020-01-01T00:00:00Z"
UTC = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def is_running(run: Run) -> bool:
    return run.state().status == "running"


def age(sweep: Sweep) -> None:
    """Makes heartbeats old, so that a test need not wait until a silent run counts as ended."""
    for run in sweep.runs():
        state = run.state()
        if state.status in ("waiting", "running"):
            old = replace(state, queued_utc=LONG_AGO, heartbeat_utc=LONG_AGO)
            write_json(run.state_file, asdict(old))


def job_of(run: Run) -> str:
    job: str = run.sweep.info().jobs[run.name]
    return job


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A folder that is ready for `skinjob submit`."""
    folder = tmp_path_factory.mktemp("faults")
    make_tree(folder / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, folder / "weights")
    return folder


@pytest.fixture(scope="module")
def hanging(slurm: Slurm, project: Path) -> Sweep:
    """A sweep whose job hangs before Python, with SLURM's shortest time limit, a minute."""
    small = (*LONG, "--mem", "1", "--setup", "[ -z $SLURM_JOB_ID ] || sleep 1000")
    slurm.skinjob("submit", "--batch-sizes", "4", *small, "--name", "hanging", cwd=project, code=0)
    (run,) = Sweep(project / "runs/hanging").runs()
    slurm.run(["scontrol", "update", f"jobid={job_of(run)}", "timelimit=1"], check=True)
    return run.sweep


@pytest.fixture(scope="module")
def ended(slurm: Slurm, project: Path, hanging: Sweep) -> Sweep:
    """A sweep of four jobs, each ended from outside in a different way, a long time ago."""
    sizes = ("--batch-sizes", "1,2,4,8")
    slurm.skinjob("submit", *sizes, *LONG, "--mem", "2", "--name", "ended", cwd=project, code=0)
    sweep = Sweep(project / "runs/ended")
    runs = {run.name: run for run in sweep.runs()}
    for run in runs.values():
        wait_until(lambda run=run: is_running(run))
    slurm.run(["scancel", job_of(runs[CANCELLED])], check=True)
    slurm.run(["scancel", "--signal=KILL", f"{job_of(runs[STEP_KILLED])}.0"], check=True)
    for name, number in ((KILLED, signal.SIGKILL), (SEGFAULT, signal.SIGSEGV)):
        pid = runs[name].state().pid
        assert pid
        os.kill(pid, number)
    slurm.wait(job_of(sweep.runs()[0]).split("_")[0])
    age(sweep)
    shutil.copytree(sweep.folder, project / "copies/ended")
    return sweep


@pytest.fixture(scope="module")
def output(slurm: Slurm, ended: Sweep, project: Path) -> str:
    """What `skinjob status` prints about the sweep of ended jobs."""
    return slurm.skinjob("status", ended.folder, cwd=project, code=1).stdout


def state_of(sweep: Sweep, name: str) -> RunState:
    state = Run(sweep.folder / name).state()
    assert state.status in ("failed", "cancelled")
    assert re.fullmatch(UTC, str(state.finished_utc))
    assert not str(state.finished_utc).startswith("2020"), (
        "it is not the time of the last heartbeat"
    )
    return state


@pytest.mark.parametrize(
    ("name", "failure", "words"),
    [
        (CANCELLED, "cancelled", r"was cancelled by \w+ on \S+ after epoch \d+ of 2000"),
        (STEP_KILLED, "killed", r"was killed by signal 9 \(SIGKILL: by hand, or by the kernel"),
        (KILLED, "killed", r"was killed by signal 9 \(SIGKILL: by hand, or by the kernel"),
        (
            SEGFAULT,
            "killed",
            r"was killed by signal 11 \(SIGSEGV: a fault in a library\) on \S+ after epoch \d+ of",
        ),
    ],
)
def test_status_shows_what_ended_a_job(
    ended: Sweep, output: str, name: str, failure: str, words: str
) -> None:
    """If a job could not write why it ended, its run's state and `status` say why, and when."""
    state = state_of(ended, name)
    assert (state.failure or state.status) == failure
    assert re.search(
        rf"^job {job_of(Run(ended.folder / name))} {words}.* at {UTC}", str(state.reason)
    )
    assert f"{name}: {failure}\n  {state.reason}\n" in output
    assert f"\n  fix: {state.fix}\n" in output


def test_the_ends_of_log_and_output_are_shown(output: str) -> None:
    """The user need not search for a failed run's log, or for SLURM's messages about its job."""
    log, rest = re.search(
        rf"{CANCELLED}/train.log:\n(.*?)log.out:\n(.*?)fix:", output, re.S
    ).groups()
    assert re.search(rf"^  \| {UTC} ", log, re.M)
    assert re.search("CANCELLED AT|srun: ", rest)
    assert "Segmentation fault" in output


def test_the_fix_queues_the_run_again_and_says_why(
    slurm: Slurm, project: Path, ended: Sweep, output: str
) -> None:
    """The fix that `status` shows continues the same run, and prints why it had ended."""
    state = state_of(ended, CANCELLED)
    words = str(state.fix).split()
    assert words == ["skinjob", "retry", str(ended.folder), CANCELLED]
    partition = ["scontrol", "update", "partitionname=lab"]
    slurm.run([*partition, "state=down"], check=True)
    try:
        result = slurm.skinjob(*words[1:], cwd=project, code=0)
        assert Run(ended.folder / CANCELLED).state().status == "waiting"
        slurm.skinjob("cancel", ended.folder, CANCELLED, cwd=project, code=0)
    finally:
        slurm.run([*partition, "state=up"], check=True)
    assert f"{CANCELLED} cancelled: {state.reason}\n" in result.stdout


def test_a_job_that_needs_too_much_memory_is_out_of_memory(slurm: Slurm, project: Path) -> None:
    """A job that used more than its --mem is not shown as killed by hand."""
    slurm.skinjob(
        "submit", "--batch-sizes", "4", *LONG, "--mem", "0.5", "--name", "fat", cwd=project, code=0
    )
    sweep = Sweep(project / "runs/fat")
    (run,) = sweep.runs()
    slurm.wait(job_of(run))
    age(sweep)
    output = slurm.skinjob("status", sweep.folder, cwd=project, code=1).stdout
    state = state_of(sweep, run.name)
    assert state.failure == "out of memory"
    assert "needed more than its 0.5 GB of memory" in str(state.reason)
    assert "--mem 1" in str(state.fix)
    assert "exceeded memory limit" in output


def status_of(slurm: Slurm, sweep: Sweep, project: Path) -> str:
    """Returns what `status` prints about a sweep that has waiting runs."""
    return slurm.skinjob("status", sweep.folder, cwd=project, code=3).stdout


def test_a_job_that_never_starts_by_itself_is_shown_with_a_fix(slurm: Slurm, project: Path) -> None:
    """A job in a partition that is down waits; a held job has a fix, which works.

    The run's own state stays waiting, because the job is still in the queue.
    """
    partition = ["scontrol", "update", "partitionname=lab"]
    slurm.run([*partition, "state=down"], check=True)
    try:
        small = (*LONG, "--mem", "1", "--name", "waiting")
        slurm.skinjob("submit", "--batch-sizes", "2,4,8", *small, cwd=project, code=0)
        sweep = Sweep(project / "runs/waiting")
        first, second, third = sweep.runs()
        age(sweep)
        waiting = status_of(slurm, sweep, project)
        slurm.run(["scontrol", "uhold", job_of(first)], check=True)
        held = status_of(slurm, sweep, project)
        (fix,) = re.findall(rf"{first.name}: waiting\n.*?fix: ([^\n]+)", held, re.S)
        slurm.run(fix.split(), check=True)
        released = status_of(slurm, sweep, project)
        states = {run.name: run.state().status for run in sweep.runs()}
        slurm.run(["scancel", job_of(second)], check=True)
        one_gone = status_of(slurm, sweep, project)
        slurm.run(["scancel", job_of(first).split("_")[0]], check=True)
        slurm.skinjob("status", sweep.folder, cwd=project, code=1)
    finally:
        slurm.run([*partition, "state=up"], check=True)
    assert waiting.count("its partition is down, until an admin opens it (PartitionDown)") == 3
    assert re.search(rf"^{first.name} +waiting .*held by you \(JobHeldUser\)", held, re.M)
    assert "fix:" not in released
    assert set(states.values()) == {"waiting"}
    assert re.search(rf"^{second.name} +cancelled ", one_gone, re.M)
    assert [run.state().status for run in sweep.runs()] == ["cancelled"] * 3
    assert "before training started" in str(third.state().reason)


def test_without_an_answer_of_accounting_no_run_is_lost(
    slurm: Slurm, project: Path, ended: Sweep, tmp_path: Path
) -> None:
    """While sacct gets no answer, a run whose job has left the queue stays running."""
    shutil.copytree(project / "copies/ended", tmp_path / "runs/ended")
    sweep = Sweep(tmp_path / "runs/ended")
    info = recorded(sweep)
    jobs = {name: f"9999{number}" for number, name in enumerate(info["jobs"])}
    sweep.sweep_file.write_text(json.dumps(info | {"jobs": jobs}))
    conf = Path(slurm.env["SLURM_CONF"])
    (tmp_path / "slurm.conf").write_text(conf.read_text() + "AccountingStoragePort=9\n")
    result = slurm.skinjob(
        "status", cwd=tmp_path, code=1, SLURM_CONF=str(tmp_path / "slurm.conf")
    ).stdout
    assert result.count("its job has ended, and SLURM does not say how") == 4
    assert {run.state().status for run in sweep.runs()} == {"running"}
    slurm.skinjob(
        "status", cwd=tmp_path, code=1
    )  # accounting answers that it does not know the job
    assert state_of_all(sweep) == {("lost", None)}


def state_of_all(sweep: Sweep) -> set[tuple[str, str | None]]:
    return {(state.status, state.failure) for state in (run.state() for run in sweep.runs())}


@pytest.fixture
def plain(tmp_path: Path, slurm: Slurm) -> Iterator[Slurm]:
    """The test's own cluster, without accounting; *slurm* skips the test without SLURM."""
    cluster = Slurm.start(tmp_path / "plain", gpus=1, cpus=4)
    yield cluster
    cluster.stop()


def test_without_accounting_the_controller_or_the_output_says_why(
    plain: Slurm, project: Path, ended: Sweep, tmp_path: Path
) -> None:
    """If sacct fails, the reason comes from slurmctld's memory, or else from the job's output.

    The node really fails: its daemon is killed, and the job too.
    """
    small = (*LONG, "--mem", "2", "--name", "plain", "--batch-sizes", "4")
    plain.skinjob("submit", *small, cwd=project, code=0)
    sweep = Sweep(project / "runs/plain")
    (run,) = sweep.runs()
    wait_until(lambda: is_running(run))
    job = job_of(run)
    plain.run(["scontrol", "update", f"jobid={job}", "requeue=0"], check=True)
    slurmd = int((plain.state / "pid/slurmd").read_text().split()[0])
    os.kill(slurmd, signal.SIGKILL)
    pid = run.state().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    node = os.uname().nodename.split(".")[0]
    plain.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    wait_until(lambda: not plain.run(["squeue", "-h"], check=True).stdout)
    age(sweep)
    plain.skinjob("status", sweep.folder, cwd=project, code=1)
    state = state_of(sweep, run.name)
    assert state.failure == "node failure"
    assert f"job {job} lost its node on {node} after epoch" in str(state.reason)

    shutil.copytree(project / "copies/ended", tmp_path / "runs/ended")
    forgotten = Sweep(tmp_path / "runs/ended")
    info = recorded(forgotten)
    jobs = {name: f"999{job}" for name, job in info["jobs"].items()}
    forgotten.sweep_file.write_text(json.dumps(info | {"jobs": jobs}))
    for file in forgotten.submission_folder.glob("*_log.out"):
        file.rename(file.with_name(f"999{file.name}"))
    plain.skinjob("status", cwd=tmp_path, code=1)
    statuses = {run.name: run.state().status for run in forgotten.runs()}
    assert (statuses[CANCELLED], statuses[KILLED]) == ("cancelled", "lost")
    assert "SLURM does not say why" in str(Run(forgotten.folder / KILLED).state().reason)


def test_a_job_that_never_started_is_shown_at_once(
    plain: Slurm, project: Path, tmp_path: Path
) -> None:
    """`status` shows at once what scontrol knows: a cancelled job or task, or a failed set-up.

    There is no accounting, and the runs were queued a moment ago.
    """
    small = ("--device", "cpu", "--cpus", "1", "--mem", "1")
    closed = ("--batch-sizes", "2,4,8", *small, "--partition", "closed", "--name", "calledoff")
    plain.skinjob("submit", *closed, cwd=project, code=0)
    sweep = Sweep(project / "runs/calledoff")
    first, second, third = sweep.runs()
    plain.run(["scancel", job_of(second)], check=True)
    one = plain.skinjob("status", sweep.folder, cwd=project, code=3).stdout
    plain.run(["scancel", job_of(first).split("_")[0]], check=True)
    both = plain.skinjob("status", sweep.folder, cwd=project, code=1).stdout
    assert re.search(rf"^{second.name} +cancelled ", one, re.M)
    assert re.search(rf"^{third.name} +waiting ", one, re.M)
    assert re.search(rf"^{third.name} +cancelled ", both, re.M)

    setup = ("--batch-sizes", "4", *small, "--setup", "exit 3", "--name", "setup")
    plain.skinjob("submit", *setup, cwd=project, code=0)
    (run,) = Sweep(project / "runs/setup").runs()
    plain.wait(job_of(run))
    setup_output = plain.skinjob("status", run.sweep.folder, cwd=project, code=1).stdout
    assert "ended with exit code 3 before training started" in setup_output
    assert run.state().status == "waiting", "its own state may come late, and would say more"


def test_a_time_limit_that_ends_a_hanging_job_is_shown(
    slurm: Slurm, project: Path, hanging: Sweep
) -> None:
    """The fix gives twice the time to a job that hung before Python until its time limit."""
    (run,) = hanging.runs()
    slurm.wait(job_of(run), timeout_s=150)
    age(hanging)
    slurm.skinjob("status", hanging.folder, cwd=project, code=1)
    state = state_of(hanging, run.name)
    assert state.failure == "time limit"
    assert "reached its time limit of 00:01:00 before training started" in str(state.reason)
    assert str(state.fix).endswith(" --time 240")
