"""Why a run ended, without SLURM: the queue of this machine, the sentences, the screen."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import sweep_maker
import trees
from commands import SKINJOB, import_path, only_sweep, recorded, refusal, skinjob, wait_until
from terminal import terminal

from skinjob.config import ClusterConfig
from skinjob.files import tail, write_json
from skinjob.queues.base import JobEnd, QueuedJob, record_jobs
from skinjob.queues.slurm.client import ENDS, SlurmEnd, SlurmJob, ask_queue, job_ends
from skinjob.queues.slurm.queue import SlurmQueue, _job_end, _queued_job
from skinjob.queues.slurm.reasons import HELD, OTHER_STATES, family, why_pending
from skinjob.report.findings import missing
from skinjob.report.tables import read_sweep
from skinjob.status.failures import (
    Ending,
    ending,
    reason_line,
    write_ending,
)
from skinjob.status.status import sweep_status
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState, Status, utc_now

LONG = ("--batch-sizes", "4,8", "--epochs", "2000", "--cluster", "local", "--device", "cpu")
LONG_AGO = "2020-01-01T00:00:00Z"
REASONS = Path(__file__).parents[1] / "support/slurm/reasons.txt"
TRACEBACK = "Traceback (most recent call last):"
NO_SLURM = "/nonexistent"  # a PATH without SLURM's commands


def process_of(run: Run) -> int:
    """Waits until a process trains the run, and returns the process."""
    wait_until(lambda: run.state().status == "running")
    pid = run.state().pid
    assert pid
    return pid


def queue_of(sweep: Sweep) -> int:
    """Returns the process of this machine's queue that works on the sweep."""
    ours = os.fsencode(sweep.folder)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"skinjob.queues.local\0" in command and ours in command:
                return int(process.name)
    raise AssertionError("no queue")


def set_state(run: Run, **words: object) -> None:
    """Writes a run's state, with a heartbeat of long ago."""
    values = asdict(RunState(queued_utc=LONG_AGO, heartbeat_utc=LONG_AGO)) | words
    write_json(run.state_file, values)


def queued(sweep: Sweep, reason: str) -> QueuedJob:
    """Returns what the queue knows of a job that waits for a *reason* of squeue."""
    job = SlurmJob("PENDING", node="", reason=reason, script="")
    return _queued_job(sweep, "12_0", job, [sweep.runs()[0].name])


def status(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `skinjob status` without SLURM."""
    return skinjob("status", *arguments, cwd=cwd, PATH=NO_SLURM)


@pytest.fixture
def slurm_sweep(tmp_path: Path) -> Sweep:
    """A sweep on SLURM with three runs: failed with a reason, running, done."""
    sweep = sweep_maker.draw_sweep(
        tmp_path / "runs/sweep", batch_sizes=(32, 64, 128), finished={"bs0128-lr0.01-seed0": 20}
    )
    info = recorded(sweep) | {"cluster": asdict(ClusterConfig(cluster="slurm", partition="gpu"))}
    write_json(sweep.sweep_file, info)
    failed, running, _ = sweep.runs()
    set_state(
        failed,
        status="failed",
        epoch=7,
        failure="out of GPU memory",
        reason="a batch of 32 images does not fit the 16 GB of this GPU, which other jobs share",
        fix="skinjob submit --batch-sizes 16",
    )
    set_state(running, status="running", epoch=3, host="elsewhere", pid=1, started_utc=LONG_AGO)
    failed.log_file.write_text("2026-01-01T00:00:00Z the last that the log has\n")
    sweep.submission_folder.mkdir()
    (sweep.submission_folder / "12_0_0_log.out").write_text(
        "submitit INFO (2026-01-01) - Starting\n2026-01-01T00:00:00Z the last that the log has\n"
        "slurmstepd: error: Detected 1 oom-kill event(s)\n"
    )
    return sweep


@pytest.mark.train
def test_status_shows_a_killed_queue_and_a_killed_job(project: Path) -> None:
    """After kill -9 of a queue its job runs on; after kill -9 of the job its runs are lost."""
    assert skinjob("submit", *LONG, cwd=project).returncode == 0
    sweep = only_sweep(project / "runs")
    pid = process_of(sweep.runs()[0])
    os.kill(queue_of(sweep), signal.SIGKILL)
    at_work = skinjob("status", cwd=project)
    assert at_work.returncode == 3, at_work.stdout
    assert at_work.stdout.count(" running ") == 2
    assert {run.state().status for run in sweep.runs()} == {"running"}

    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    killed = skinjob("status", cwd=project)
    assert killed.returncode == 1, killed.stdout
    for run in sweep.runs():
        state = run.state()
        assert (state.status, state.failure) == ("lost", None)
        assert re.match(
            r"job local-1 and its queue have gone \(killed, .+\) on \S+ after epoch",
            str(state.reason),
        )
    assert "and 1 more of its job: lost" in killed.stdout


def test_a_job_that_ends_before_python_starts_is_reported(project: Path) -> None:
    """A set-up line that fails ends the job; `submit --wait` shows the failure at once."""
    result = skinjob(
        "submit", *LONG, "--setup", "echo no such module; false", "--wait", cwd=project
    )
    assert result.returncode == 1
    assert refusal(result).startswith("not every run of ")
    state = only_sweep(project / "runs").runs()[0].state()
    assert (state.status, state.failure) == ("failed", "never started")
    assert "job local-1 ended with exit code 1 before training started" in str(state.reason)
    assert f"bs0004-lr0.01-seed0 failed, never started: {state.reason}\n" in result.stdout
    output = shlex.split(str(state.fix))[-1]
    assert "no such module" in (project / output).read_text()


def test_a_run_whose_queue_ended_first_has_failed(project: Path) -> None:
    """A run whose local queue has ended is not shown as waiting."""
    sweep = trees.make_sweep(
        project / "skin_cancer", project / "weights/resnet18.safetensors", project / "runs"
    )
    first, second = sweep.runs()
    set_state(first, status="waiting")
    record_jobs(sweep, {first.name: "local-1"})
    job = {"id": "local-1", "runs": [first.name]}
    write_json(sweep.submission_folder / "local-1.json", job)
    set_state(second, status="waiting", queued_utc=utc_now(), heartbeat_utc=None)
    result = skinjob("status", cwd=project)
    assert result.returncode == 3
    assert first.state().failure == "never started"
    assert second.state().status == "waiting", "its queue may be about to start"


def test_the_fix_continues_the_same_sweep(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command to paste needs no other option, and makes no new sweep."""
    sweep = trees.make_sweep(
        project / "skin_cancer",
        project / "weights/resnet18.safetensors",
        project / "my runs",
        batch_sizes=(2, 4),
        seeds=(1, 2),
        lrs=(0.25, 0.5),
        epochs=7,
        train="all",
    )
    monkeypatch.chdir(project)
    words = shlex.split(sweep.retry_command(twice="mem_gb"))
    assert "--mem" in words
    result = skinjob(*words[1:], "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "(exists, continues)" in result.stdout
    listed = result.stdout.split("# runs\n")[1].split("\n\n")[0].splitlines()
    assert sorted(listed) == [run.name for run in sweep.runs()]
    assert "mem_gb = 16.0" in result.stdout


def test_status_reports_a_full_disk(project: Path, tmp_path: Path) -> None:
    """A job cannot write that its disk is full, so `status` reports it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", small], check=True)
    try:
        sweep = trees.make_sweep(
            project / "skin_cancer", project / "weights/resnet18.safetensors", small
        )
        run = sweep.runs()[0]
        set_state(
            run, status="running", started_utc=LONG_AGO, host=os.uname().nodename, pid=2**22 + 1
        )
        with (small / "fill").open("wb") as fill, contextlib.suppress(OSError):
            fill.write(bytes(10_000_000))
        result = skinjob("status", "--runs", small, cwd=project)
        assert result.returncode == 1
        assert f"{run.name}: disk full\n  the disk of " in result.stdout
        assert f"  fix: df -h {run.folder}" in result.stdout
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "by hand, or by the kernel"), (143, "15 (SIGTERM: kill, or a shutdown")],
)
def test_a_reason_names_the_signal_that_ended_a_job(
    slurm_sweep: Sweep, code: int, words: str
) -> None:
    """The exit code of a job on this machine gives the number of the signal."""
    info = recorded(slurm_sweep) | {"cluster": asdict(ClusterConfig(cluster="local"))}
    write_json(slurm_sweep.sweep_file, info)
    run = slurm_sweep.runs()[1]
    record_jobs(slurm_sweep, {run.name: "local-1"})
    job = {"id": "local-1", "runs": [run.name], "pid": 1, "exit_code": code, "ended_utc": LONG_AGO}
    write_json(slurm_sweep.submission_folder / "local-1.json", job)
    (status,) = sweep_status(slurm_sweep, runs=[run]).runs
    assert status.failure == "killed"
    assert f"{words}" in str(status.reason)
    assert " on elsewhere after epoch 3 of 20" in str(status.reason)


def test_a_run_s_own_state_is_not_overwritten(slurm_sweep: Sweep) -> None:
    """A status that was found from outside never replaces a newer state of the run itself."""
    run = slurm_sweep.runs()[1]
    state = run.state()
    run.update_state(status="done")
    outside = Ending(Status.LOST, None, "job 12_1 is gone", "skinjob submit", utc_now())
    assert write_ending(run, state, outside).status == "done"
    assert run.state().status == "done"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "does not answer (no squeue on PATH)"),
        ("exit 1", "does not answer"),
        (
            "echo Welcome >&2; echo \"squeue: unrecognized option '--array'\" >&2; exit 1",
            "refuses the question (Welcome; unrecognized option '--array')",
        ),
        (
            "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
            "does not answer (slurm_load_jobs error: Unable to contact slurm controller)",
        ),
    ],
)
def test_without_an_answer_of_slurm_no_state_changes(
    slurm_sweep: Sweep, tmp_path: Path, script: str, words: str
) -> None:
    """Without squeue, or if squeue fails, `status` shows the runs' own states and squeue's error.

    The squeue is a fake that prints errors of the real squeue, which may come after a minute.
    """
    before = {run.name: run.state_file.read_bytes() for run in slurm_sweep.runs()}
    path = tmp_path / "tools"
    path.mkdir()
    if script:
        (path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (path / "squeue").chmod(0o755)
    result = skinjob("status", cwd=tmp_path, PATH=str(path))
    assert result.returncode == 3, result.stderr
    assert f"SLURM {words}: this is what the folders say" in result.stdout
    assert re.search(r"^bs0064\S+ +running +3/20 ", result.stdout, re.M)
    assert {run.name: run.state_file.read_bytes() for run in slurm_sweep.runs()} == before


def test_status_shows_the_ends_of_the_log_and_the_job_s_output(
    slurm_sweep: Sweep, tmp_path: Path
) -> None:
    """A line that is in both is shown once; SLURM's messages and crashes are only in the output."""
    output = status(cwd=tmp_path).stdout
    assert output.count("the last that the log has") == 1
    assert "  | slurmstepd: error: Detected 1 oom-kill event(s)\n" in output
    assert "Starting" not in output
    assert "\n  fix: skinjob submit --batch-sizes 16\n" in output


def test_the_end_of_any_log_can_be_read(tmp_path: Path) -> None:
    """The tail of a log is read from its end, even if the log has long lines and bad bytes."""
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000 + b"\n\xff\xfe\n\nlast\n")
    assert tail(log, 2) == ["\ufffd\ufffd", "last"]
    assert tail(tmp_path / "none", 2) == []


def test_exit_codes_of_status(slurm_sweep: Sweep, tmp_path: Path) -> None:
    """3: some runs are waiting or running. 1: all have ended, some failed. 0: all are done."""
    failed, running, done = slurm_sweep.runs()
    assert status(cwd=tmp_path).returncode == 3
    set_state(running, status="done")
    assert status(cwd=tmp_path).returncode == 1
    set_state(failed, status="done")
    result = status(done.sweep.folder, cwd=tmp_path)
    assert result.returncode == 0
    assert "fix:" not in result.stdout
    assert "no sweep in elsewhere/" in refusal(status("--runs", "elsewhere", cwd=tmp_path))


def test_status_explains_some_of_many_failures_and_counts_the_rest(tmp_path: Path) -> None:
    """The output stays readable if very many runs have failed."""
    sweep = sweep_maker.draw_sweep(tmp_path / "runs/sweep", batch_sizes=range(1, 31))
    for run in sweep.runs():
        set_state(run, status="failed", failure="exception", reason="no", fix="tail")
    output = status(cwd=tmp_path).stdout
    assert output.count(": exception\n") == 5
    assert "and 25 more" in output


def test_a_reason_fits_a_narrow_terminal(slurm_sweep: Sweep, tmp_path: Path) -> None:
    """A sentence is broken only between words."""
    with terminal(*SKINJOB, "status", cwd=tmp_path, columns=60, lines=50, PATH=NO_SLURM) as shown:
        lines = shown.show("exit 3").splitlines()
    first, second = (
        lines.index("  a batch of 32 images does not fit the 16 GB of this GPU,"),
        lines.index("  which other jobs share"),
    )
    assert second == first + 1


@pytest.mark.parametrize("word", sorted(ENDS))
def test_each_end_of_a_slurm_job_gives_a_status_reason_and_fix(
    slurm_sweep: Sweep, word: str
) -> None:
    """For every word with which SLURM says how a job ended, the run gets a reason and a fix."""
    run = slurm_sweep.runs()[1]
    answer = SlurmEnd(word, exit_code=1, node="node7", time_limit="02:00:00", ended_utc=LONG_AGO)
    end = _job_end(slurm_sweep, answer, slurm_sweep.submission_folder / "none")
    result = ending(run, run.state(), "12_1", end, SlurmQueue())
    assert result.status in ("failed", "cancelled", "lost")
    assert result.reason.startswith("job 12_1 ")
    assert "on node7 after epoch 3 of 20, at 2020-01-01T00:00:00Z" in result.reason
    assert result.fix


def test_a_step_that_was_out_of_memory_explains_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cgroups, sacct may show OUT_OF_MEMORY only in the row of the step.

    The sacct is a fake, because the jobs of the tests' own cluster have no cgroups.
    """
    rows = (
        "12_0|FAILED|0:125|node7|02:00:00|1764000000",
        "12_0.batch|FAILED|0:125|node7||1764000000",
        "12_0.0|OUT_OF_MEMORY|0:125|node7||1764000000",
        "12_[1-2]|CANCELLED by 0|0:0|None assigned|02:00:00|1764000000",
    )
    fake = tmp_path / "sacct"
    fake.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ends = job_ends({"12_0", "12_2"})
    assert ends["12_0"] == SlurmEnd(
        "OUT_OF_MEMORY", "", 0, 125, "node7", "02:00:00", "2025-11-24T16:00:00Z"
    )
    assert ends["12_2"] == SlurmEnd(
        "CANCELLED", "root", 0, 0, "", "02:00:00", "2025-11-24T16:00:00Z"
    )


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "no free GPU, cores or memory yet (Resources)"),
        ("Priority", "other jobs are before it (Priority)"),
        ("BeginTime", "its begin time has not come (BeginTime)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:vm",
            "its nodes are down or reserved (ReqNodeNotAvail)",
        ),
        (
            "QOSMaxCpuPerUserLimit",
            "at a limit of your account or QOS: it starts when other jobs end, but never if it "
            "alone asks for more than the limit (QOSMaxCpuPerUserLimit)",
        ),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_status_explains_why_a_job_waits(slurm_sweep: Sweep, reason: str, words: str) -> None:
    """SLURM's reason is explained, its own word is kept for a search, and no fix is shown."""
    assert why_pending(reason) == words
    assert not queued(slurm_sweep, reason).fix


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("JobHeldUser", "scontrol release 12_0"),
        ("JobHeldAdmin", "scontrol show job 12_0 "),
        ("launch failed requeued held", "scontrol release 12_0"),
        ("BadConstraints", "skinjob cancel /"),
        ("DependencyNeverSatisfied", "skinjob cancel /"),
        ("PartitionTimeLimit", "sinfo -o '%P %l'; skinjob cancel /"),
        ("QOSMaxWallDurationPerJobLimit", "sacctmgr show assoc user=$USER; skinjob cancel /"),
        ("AssocMaxCpuPerJobLimit", "sacctmgr show assoc user=$USER; skinjob cancel /"),
    ],
)
def test_a_job_that_never_starts_by_itself_has_a_fix(
    slurm_sweep: Sweep, reason: str, fix: str
) -> None:
    """If a job cannot start by itself, `status` shows a command."""
    job = queued(slurm_sweep, reason)
    assert f"({reason})" in job.note
    assert job.fix.startswith(fix)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["error: no module", "srun: error: n1: task 0: Exited with exit code 2"], "error: no "),
        ([TRACEBACK, '  File "a"', "RuntimeError: CUDA", "Use X"], "RuntimeError"),
        ([TRACEBACK, "E: 1", TRACEBACK, "F: 2"], "F: 2"),
        (["srun: error: execve(): python: No such", "srun: Terminating StepId=1.0"], "srun: error"),
        ([], ""),
    ],
)
def test_the_reason_is_found_before_the_last_line_of_an_output(
    lines: list[str], reason: str
) -> None:
    """Lines that SLURM adds to the end of every job are skipped, and lines that follow an error."""
    line = reason_line(lines, SlurmQueue.noise)
    assert line.startswith(reason)
    assert bool(line) == bool(reason)


@pytest.mark.parametrize("number", [1, 4, 6, 7, 9, 11, 15, 24, 25])
def test_each_signal_is_shown_with_its_name_and_sender(slurm_sweep: Sweep, number: int) -> None:
    """A limit of CPU time or of file size is not reported as a kill by hand."""
    run = slurm_sweep.runs()[1]
    error = ending(run, run.state(), "13", JobEnd(signal=number), SlurmQueue()).reason
    assert f"killed by signal {number} ({signal.Signals(number).name}: " in error
    assert ("by hand" in error) == (number == signal.SIGKILL)
    assert ("ulimit -t" in error) == (number == signal.SIGXCPU)
    assert ("ulimit -f" in error) == (number == signal.SIGXFSZ)


@pytest.mark.train
def test_a_limit_of_cpu_time_is_reported(project: Path) -> None:
    """A job that reaches the CPU limit of the shell that submitted it says so.

    bash sets the soft and the hard limit, so the kernel kills the job with SIGKILL.
    """
    command = shlex.join([*SKINJOB, "submit", *LONG[:1], "4", "--epochs", "200000", *LONG[4:]])
    shell = ["bash", "-c", f"ulimit -t 8; {command} --wait"]
    result = subprocess.run(
        shell,
        cwd=project,
        env=os.environ | import_path(),
        capture_output=True,
        text=True,
    )
    state = only_sweep(project / "runs").runs()[0].state()
    assert (state.status, state.failure) == ("failed", "killed"), result.stdout + result.stderr
    assert "reached its limit of 8 s of CPU time (ulimit -t)" in str(state.reason)
    assert "by hand" not in str(state.reason)


def test_every_reason_of_slurm_says_what_ends_the_wait() -> None:
    """A used-up budget, a limit shared with others and a job that fits nowhere read differently."""
    words = {"limit": "when other jobs end", "budget": "your project has less time left"}
    kind, num = "", 0
    for line in REASONS.read_text().splitlines()[1:]:
        if not line.startswith(" "):
            kind = line.split()[0]
            continue
        for reason in line.split():
            known = family(reason)
            assert known, reason
            assert (known.fix is not None) == (kind in ("budget", "never")), reason
            matching = [name for name, text in words.items() if text in known.words]
            assert matching == [kind] * (kind in words)
            num += 1
    assert num == 216
    for state in HELD:
        assert "scontrol release" in str(getattr(family(state), "fix", ""))
        assert state not in OTHER_STATES


def test_the_report_names_the_failure(slurm_sweep: Sweep) -> None:
    """A report that is made months later, without SLURM, still says why a run failed."""
    first = missing([read_sweep(slurm_sweep)])[0]
    assert first.startswith("bs0032-lr0.01-seed0: failed (out of GPU memory) with ")


def test_a_missing_squeue_is_not_an_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without squeue the answer is an error text, not an empty list of jobs."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask_queue() == "no squeue on PATH"
