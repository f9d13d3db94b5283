"""A job at its time limit: queued again to go on, or ended with the reason, never for nothing."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import import_path
from submitit.core.utils import DelayedSubmission
from trees import make_sweep, make_tree

from skinjob.errors import RunError
from skinjob.queues.job import Task
from skinjob.submit.start import ONCE_IN
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import Stopped, utc_now
from skinjob.train.job import run_job
from skinjob.train.lease import explain, take, track_run_state

LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
def run(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of this machine's queue, whose time limit is known to its sweep alone."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    data = make_tree(tmp_path / "skin_cancer", num_train=2, num_test=2)
    (run,) = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[4], epochs=9).runs()
    return run


def at_work(run: Run, **said: object) -> None:
    """Makes a run one that this process has had in hand for long."""
    mine = {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    run.update_state(**{**mine, "started_utc": LONG_AGO, **said})


def test_a_job_at_its_time_limit_is_queued_again_and_once_less_often(run: Run) -> None:
    """What is left of its allowance travels with the job."""
    at_work(run, epoch=4, resumed_epoch=3)
    task = Task([run.folder], requeues=2)
    again = task.checkpoint().function
    assert task.ended_by == "time limit"
    assert again.requeues == 1
    assert again.folders == [run.folder]


def test_a_preempted_job_is_queued_again_as_often_as_it_takes(run: Run) -> None:
    """Room made for others is not held against a job, nor that it got nowhere by then."""
    with track_run_state(take([run])):
        task = Task([run.folder], requeues=0)
        assert task.checkpoint().function.requeues == 0
        assert task.ended_by == "preempted"


def test_a_time_limit_shorter_than_an_epoch_is_told_and_not_tried_again(run: Run) -> None:
    """Another attempt would get as far as this one: nowhere."""
    at_work(run, epoch=3, resumed_epoch=3, images_per_s=0.001)
    with pytest.raises(Stopped) as stop:
        Task([run.folder], requeues=2).checkpoint()
    assert stop.value.failure == "time limit"
    assert stop.value.message == (
        "the time limit of 120 min ended the job before it finished an epoch: "
        "at 0.001 images/s, an epoch of 4 images takes 67 min"
    )
    assert "--time 240" in stop.value.fix


def test_a_view_is_as_good_as_an_epoch(run: Run) -> None:
    """A job that computed a view has brought the sweep further: it lies in the cache."""
    at_work(run, views_computed=1)
    Task([run.folder], requeues=2).checkpoint()


def test_a_run_that_is_not_the_jobs_says_nothing_of_its_time(run: Run) -> None:
    """Of a run that was done or taken before this attempt, the state is of another time."""
    run.update_state(status="done", started_utc=LONG_AGO, epoch=9)
    task = Task([run.folder], requeues=0)
    assert task.checkpoint().function.requeues == 0
    assert task.ended_by == "preempted"


def test_the_allowance_comes_to_an_end(run: Run) -> None:
    """A job that is queued again and again is stopped, and told how it goes on."""
    at_work(run, epoch=4, resumed_epoch=3)
    with pytest.raises(Stopped, match="too often, after epoch 4 of 9") as stop:
        Task([run.folder], requeues=0).checkpoint()
    assert "--time 240" in stop.value.fix


@pytest.mark.parametrize(
    ("said", "fault", "words"),
    [
        ({"epoch": 4}, "time limit", "reached its time limit after epoch 4 of 9"),
        ({"epoch": 4, "started_utc": utc_now()}, "preempted", "had to make room for another job"),
    ],
)
def test_a_job_that_may_not_start_again_ends_with_the_reason(
    run: Run, said: dict[str, object], fault: str, words: str
) -> None:
    """--no-requeue holds at the time limit as it does for preemption, however far the job came."""
    at_work(run, **said)
    with pytest.raises(Stopped, match=words) as stop:
        Task([run.folder], requeue=False, requeues=3).checkpoint()
    assert stop.value.failure == fault
    assert "(--no-requeue)" in stop.value.message


def test_what_stops_a_job_is_the_last_word_of_its_runs(run: Run) -> None:
    """The reason is in state.json and in the log, not in a traceback."""

    def stopped() -> None:
        with track_run_state(take([run])):
            raise Stopped("time limit", "too short", "skinjob submit --time 240")

    with pytest.raises(Stopped):
        stopped()
    state = run.state()
    assert (state.status, state.failure, state.reason) == ("failed", "time limit", "too short")
    assert state.fix == "skinjob submit --time 240"


def allocate_too_much() -> None:
    torch.empty(1 << 60)


def load_too_much() -> None:
    bytearray(1 << 62)


def write_to_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        full.write(b"x")


def fill_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")  # a fake: there is no GPU here


@pytest.mark.parametrize(
    ("cause", "kind", "fix"),
    [
        (allocate_too_much, "out of memory", "--mem 16"),
        (load_too_much, "out of memory", "--mem 16"),
        (write_to_a_full_disk, "disk full", "df -h"),
        (fill_a_gpu, "out of GPU memory", "smaller --batch-sizes"),
        (lambda: {}["x"], "exception", "tail -n 40"),
        (lambda: (_ for _ in ()).throw(RunError("m", "fix")), "exception", "fix"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "killed", "skinjob retry"),
    ],
    ids=["tensor", "bytes", "disk", "GPU", "bug", "ours", "Ctrl-C"],
)
def test_faults_inside_a_job_are_told_apart(run: Run, cause: object, kind: str, fix: str) -> None:
    """Each has a kind of its own, and what mends it."""
    with pytest.raises(BaseException) as fault:  # noqa: PT011  # Ctrl-C is one of them
        cause()  # type: ignore[operator]
    found = explain(run, fault.value)
    assert found[0] == kind
    assert fix in found[2]


def test_a_bug_leaves_its_trace_in_the_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw can be reported by whoever meets it."""
    monkeypatch.setattr("skinjob.train.job.choose_device", lambda *_, **__: {}["no such device"])
    with pytest.raises(KeyError):
        run_job([run.folder])
    assert run.state().failure == "exception"
    assert "Traceback (most recent call last)" in run.log_file.read_text()
    assert "KeyError: 'no such device'" in run.log_file.read_text()


@pytest.mark.parametrize("module", ONCE_IN)
def test_a_job_that_an_earlier_skinjob_queued_still_starts(tmp_path: Path, module: str) -> None:
    """An upgrade while jobs wait breaks none: the pickles name the modules of before."""
    folder = tmp_path / "sweep/submission"
    folder.mkdir(parents=True, mode=0o700)
    job = DelayedSubmission(Task([tmp_path / "sweep/run"], requeues=0))
    text = pickle.dumps(job, protocol=0).replace(b"cskinjob.queues.job\n", f"c{module}\n".encode())
    (folder / "7_submitted.pkl").write_bytes(text)
    environment = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7", **import_path()}
    command = [sys.executable, "-m", "skinjob.submit.start", str(folder)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert f"{tmp_path}/sweep/run is not a run" in result.stderr
