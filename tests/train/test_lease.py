"""Two processes on one run: one works and the other leaves, whichever of them came first."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import import_path, refusal, skinjob, wait_until
from trees import left, make_sweep, make_tree

from skinjob import locks
from skinjob.sweeps import layout as runs
from skinjob.sweeps.layout import Run
from skinjob.train import claims, lease
from skinjob.train import job as train_job
from skinjob.train.job import run_job
from skinjob.train.lease import Lease, take

SLEEP = time.sleep


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=4, num_test=2)


def make_run(data: Path, weights: Path, runs: Path, epochs: int = 20) -> Run:
    return make_sweep(data, weights, runs, batch_sizes=[4], epochs=epochs).runs()[0]


def start(run: Run) -> subprocess.Popen[bytes]:
    """Starts `skinjob train` on a run, and returns once it has finished an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "skinjob", "train", run.folder],
        env=os.environ | import_path(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: run.state().epoch > 0)
    return process


def test_a_second_process_leaves_a_run_that_is_at_work(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """It is told who has the run, and the first goes on as if nothing had been."""
    run = make_run(data, weights, tmp_path, epochs=1000)
    first = start(run)
    try:
        words = refusal(skinjob("train", run.folder, cwd=tmp_path))
        assert f"is trained by process {first.pid} on {os.uname().nodename}" in words
        epoch = run.state().epoch
        wait_until(lambda: run.state().epoch > epoch)
    finally:
        first.kill()
    assert run.state().attempts == 1


def test_a_process_that_wakes_up_on_a_run_of_another_leaves(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a node that was lost comes back: it writes no more, and spoils nothing."""
    whole = make_run(data, weights, tmp_path / "whole")
    run_job([whole.folder])
    run = make_run(data, weights, tmp_path / "runs")
    first = start(run)
    try:
        first.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(lease, "SILENCE_S", 0.5)
        monkeypatch.setattr(claims, "STALE_S", 0.5)  # it may have claimed a view
        run_job([run.folder])
        assert run.state().status == "done"
        files = {file: file.stat().st_mtime_ns for file in run.folder.iterdir()}
        first.send_signal(signal.SIGCONT)
        first.wait(timeout=60)
    finally:
        first.kill()
    del files[run.log_file]
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert "taken by another process: it is done now" in run.log_file.read_text()
    assert left(run) == left(whole)


def test_a_run_whose_holder_is_gone_is_taken_at_once(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill -9 nobody waits for a heartbeat of a process that is known to have ended."""
    run = make_run(data, weights, tmp_path)
    first = start(run)
    first.kill()
    first.wait()
    monkeypatch.setattr(lease.time, "sleep", lambda _: pytest.fail("it waits"))
    assert take([run]).has(run)


def test_a_holder_on_another_machine_is_believed_by_its_heartbeat(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of a process says nothing of another machine, its heartbeat does."""
    run = make_run(data, weights, tmp_path)
    holder = Lease([run], status="running", host="another", pid=1, job_id="7")
    while_waiting(monkeypatch, run.update_state)
    assert take([run]).skipped == {run: f"{run.folder} is trained by job 7, process 1 on another"}
    assert holder.check(run)
    monkeypatch.undo()
    monkeypatch.setattr(lease, "SILENCE_S", 0.5)
    assert take([run]).has(run)  # silent for so long
    assert not holder.check(run)


def test_a_restarted_job_waits_for_no_heartbeat_of_its_last_attempt(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has ended that attempt."""
    run = make_run(data, weights, tmp_path)
    Lease([run], status="running", host="another", pid=1, job_id="7")
    monkeypatch.setattr(lease.time, "sleep", lambda _: pytest.fail("it waits"))
    assert take([run], job_id="7", is_restart=True).has(run)


def while_waiting(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Calls *act* whenever a process waits for a heartbeat, for three seconds instead of 75."""

    def act_and_sleep(seconds: float) -> None:
        act()
        SLEEP(seconds)

    monkeypatch.setattr(lease, "SILENCE_S", 3)
    monkeypatch.setattr(lease.time, "sleep", act_and_sleep)


ENDS = {
    "is done": {"status": "done"},
    "has failed in the meantime": {"status": "failed", "failure": "exception"},
    "was cancelled": {"status": "cancelled"},
}


@pytest.mark.parametrize("moment", ["waiting", "taking"])
@pytest.mark.parametrize("words", ENDS)
def test_a_run_that_ends_while_another_process_waits_for_it_stays_as_it_is(
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    moment: str,
) -> None:
    """`skinjob train RUN` beside a job in its last seconds trains nothing again."""
    run = make_run(data, weights, tmp_path)
    holder = Lease([run], status="running", host="another", pid=1)
    end = functools.partial(holder.end, run, **ENDS[words])
    if moment == "waiting":
        while_waiting(monkeypatch, end)
    else:  # between the last look and the taking of the run
        monkeypatch.setattr(lease.Request, "wait", lambda _: end())
    assert run_job([run.folder]) == [f"{run.folder} {words}"]
    assert run.state().status == ENDS[words]["status"]
    assert run.state().attempts == 1


def test_a_run_that_is_let_go_of_is_taken(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that leaves, to be queued again, holds up nobody who is there now."""
    run = make_run(data, weights, tmp_path)
    holder = Lease([run], status="running", host="another", pid=1)
    while_waiting(monkeypatch, lambda: holder.end(run, status="waiting"))
    assert take([run]).has(run)


def test_a_run_that_failed_before_is_trained_again_by_hand(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """`skinjob train RUN` on a run that is cancelled or failed already means to train it."""
    for end in ENDS.values():
        run = make_run(data, weights, tmp_path / end["status"])
        run.update_state(**end)
        assert take([run]).has(run) == (end["status"] != "done")


@pytest.mark.parametrize("has_locks", [True, False])
def test_one_of_two_that_wait_for_a_silent_run_takes_it(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """Both find it free at the same moment; one trains it, and the other says who does."""
    run = make_run(data, weights, tmp_path)
    Lease([run], status="running", host="another", pid=1)
    monkeypatch.setattr(lease, "SILENCE_S", 0)
    both_judged = threading.Barrier(2)
    wait = lease.Request.wait

    def wait_for_both(request: lease.Request) -> None:
        wait(request)
        both_judged.wait()

    monkeypatch.setattr(lease.Request, "wait", wait_for_both)
    if not has_locks:
        monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with ThreadPoolExecutor(2) as pool:
        leases = list(pool.map(take, [[run], [run]]))
    assert sum(held.check(run) for held in leases) == 1
    if has_locks:
        assert run.state().attempts == 2
        (words,) = [words for held in leases for words in held.skipped.values()]
        assert f"is trained by process {os.getpid()}" in words


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_process_that_is_stopped_while_it_has_the_lock_stops_no_other(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM may suspend a job at any moment: others take its run after a while."""
    run = make_run(data, weights, tmp_path)
    monkeypatch.setattr(runs, "LOCK_S", 0.2)
    with run.changing_state():
        assert take([run]).has(run)


def test_the_last_to_take_a_run_has_it(data: Path, weights: Path, tmp_path: Path) -> None:
    """Of two that begin at the same moment exactly one goes on."""
    run = make_run(data, weights, tmp_path)
    first, second = Lease([run]), Lease([run])
    assert not first.say(run, epoch=1)
    assert second.say(run, epoch=2)
    assert not first.end(run, status="failed")
    assert run.state().epoch == 2


def test_a_process_that_lost_its_run_before_it_began_touches_nothing(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent for long over its first view, it does not empty the CSV of a run that is done."""
    run = make_run(data, weights, tmp_path, epochs=2)
    read = train_job.read_index

    def while_another_trains(*arguments: object) -> object:
        monkeypatch.setattr(train_job, "read_index", read)
        run.update_state(holder=None)  # as a submit leaves it
        run_job([run.folder])
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train_job, "read_index", while_another_trains)
    run_job([run.folder])
    assert len(left(run)[0]) == 2
    assert (run.state().status, run.state().attempts) == ("done", 2)


def test_output_that_nobody_reads_ends_no_training(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """`skinjob train RUN > /dev/full`, or into a pager that was closed, trains to the end."""
    run = make_run(data, weights, tmp_path, epochs=2)
    with Path("/dev/full").open("wb") as full:
        subprocess.run(
            [sys.executable, "-u", "-m", "skinjob", "train", run.folder],
            env=os.environ | import_path(),
            stdout=full,
            stderr=subprocess.DEVNULL,
        )
    assert run.state().status == "done"
