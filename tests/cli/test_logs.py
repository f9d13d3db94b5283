"""`skinjob logs`: the output of a run and its job, printed once or followed."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SKINJOB, Lines, import_path, recorded, refusal, skinjob
from sweep_maker import draw_sweep
from terminal import terminal

from skinjob.files import write_json
from skinjob.queues.local import queue_lock
from skinjob.sweeps.layout import Run, run_name
from skinjob.sweeps.records import RunState

NO_SLURM = "/nonexistent"  # a PATH without SLURM's commands
NAME, OTHER = (run_name(size, 0.01, 0) for size in (32, 64))
STAMP = "2026-01-01T10:00:00Z"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A waiting run of this machine's queue, with the log and the output of its last job."""
    sweep = draw_sweep(
        tmp_path / "runs/sweep",
        batch_sizes=(32, 64),
        finished={NAME: 3},
        states={NAME: RunState(epoch=3)},
    )
    local = {"cluster": {"cluster": "local"}, "jobs": {NAME: "77", OTHER: "77"}}
    write_json(sweep.sweep_file, recorded(sweep) | local)
    waiting = Run(sweep.folder / NAME)
    waiting.log_file.write_text("".join(f"{STAMP} line {number}\n" for number in range(1, 61)))
    sweep.submission_folder.mkdir()
    (sweep.submission_folder / "77_0_log.out").write_text(
        f"submitit INFO ({STAMP}) - Starting\n{STAMP} line 60  ({NAME})\nSegmentation fault\n"
    )
    return waiting


@pytest.fixture
def at_work(run: Run) -> Iterator[None]:
    """This machine's queue works on the run's sweep."""
    with queue_lock(run.sweep).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def logs(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `skinjob logs` without SLURM."""
    return skinjob("logs", *words, cwd=cwd, PATH=NO_SLURM)


def test_logs_shows_the_end_of_the_log_and_the_rest_of_the_job_s_output(
    run: Run, at_work: None, tmp_path: Path
) -> None:
    """stdout has only lines, each once; stderr has the run's status and the output's path."""
    result = logs(NAME, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [f"{STAMP} line {number}" for number in range(21, 61)]
    assert result.stdout.splitlines() == [*lines, "Segmentation fault"]
    output = run.sweep.submission_folder.relative_to(tmp_path) / "77_0_log.out"
    waits = f"{NAME} waiting, epoch 3/20: waits for its turn"
    assert result.stderr.splitlines() == [f"{output}:", waits]
    few = logs("-n", "2", f"sweep/{NAME}", cwd=tmp_path).stdout
    assert few.splitlines() == [*lines[-2:], "Segmentation fault"]
    assert logs("-n", "2", run.folder, cwd=tmp_path).stdout == few
    refused = refusal(logs("nothing", cwd=tmp_path))
    assert refused == "nothing: no run of runs/sweep"


@pytest.mark.slow
def test_a_log_is_followed_through_a_restart_until_the_run_ends(
    run: Run, at_work: None, tmp_path: Path
) -> None:
    """Whole lines and each new status appear at once; the job's output and the fix come last."""
    with subprocess.Popen(
        [*SKINJOB, "logs", "-f", "-n", "1", NAME],
        cwd=tmp_path,
        env=import_path() | {"PATH": NO_SLURM},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as following:
        lines = Lines(following)
        lines.until(f"{NAME} waiting, epoch 3/20: waits for its turn")
        with run.log_file.open("a") as log:
            log.write("half a")
            log.flush()
            run.update_state(status="running", attempts=1)
            lines.until(f"{NAME} running")
            log.write(" line\n")
            log.flush()
            lines.until("half a line")
            run.update_state(status="waiting")
            lines.until(f"{NAME} waiting")
            run.update_state(status="running", attempts=2)
            lines.until(f"{NAME} running")
            log.write("the last line\n")
        run.update_state(status="failed", failure="killed", reason="it was killed", fix="mend it")
        lines.until("fix: mend it")
        assert following.wait(30) == 0
    output = [line.rstrip("\n") for line in lines.read]
    assert output[0] == f"{STAMP} line 60"
    assert output.index("the last line") < output.index("Segmentation fault")
    assert output[-2] == f"{NAME} failed, epoch 3/20: it was killed"


def test_following_the_log_of_a_lost_run_ends(run: Run, tmp_path: Path) -> None:
    """If the run's process and queue are gone, `logs -f` ends with the status and a fix."""
    run.update_state(status="running", started_utc=STAMP, pid=2**22 + 1, host="elsewhere")
    state = run.state()
    write_json(run.state_file, {**vars(state), "heartbeat_utc": STAMP})
    result = logs("-f", NAME, cwd=tmp_path)
    assert result.returncode == 0
    *_, last, fix = result.stderr.splitlines()
    assert last.startswith(f"{NAME} lost, epoch 3/20: job 77 has gone")
    assert fix.startswith("fix: skinjob ")


@pytest.mark.parametrize("columns", [60, 200])
def test_ctrl_c_leaves_a_log(run: Run, at_work: None, tmp_path: Path, columns: int) -> None:
    """A terminal shows the log as it is in the file; Ctrl-C does not change the run."""
    with terminal(*SKINJOB, "logs", "-f", NAME, cwd=tmp_path, columns=columns) as shown:
        shown.show(f"{NAME} waiting")
        assert f"{STAMP} line 60\n" in shown.screen()
        shown.press("C-c")
        assert "Traceback" not in shown.show("exit 130")
    assert run.state().status == "waiting"
