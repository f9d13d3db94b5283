"""The queue of this machine: a process that starts jobs as GPUs become free.

Each GPU is a slot for one job at a time; a machine without GPUs has one slot. Slots are locks of
the user, so two sweeps wait for each other. Each job has a file in the sweep's submission folder:
its runs, its process, and its exit code.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.errors import RunError
from skinjob.files import absolute, tail
from skinjob.locks import is_locked, lock, process_exists
from skinjob.ownership import make_private, require_safe
from skinjob.queues.base import (
    MOST_HEADS,
    JobEnd,
    Queue,
    QueuedJob,
    RefusedError,
    job_output,
    record_jobs,
    recorded_cluster,
)
from skinjob.queues.gpus import visible_gpus
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Failure, Status, read_record, utc_now, write_record

LOOK_S = 2  # a status holds the queue's lock for a moment to test it
LEAVING_S = 30  # the queue needs some seconds to leave after its last job
WARNING_S = 30  # before its time limit a job is warned, so it can leave and start again
MODULE = "skinjob.queues.local"
START_AGAIN = 144  # submitit's exit code of a job that wants to start again


@dataclass(frozen=True)
class LocalJob:
    """A job of this machine, in its file."""

    id: str
    runs: tuple[str, ...]
    queue_pid: int | None = None
    """The queue's process, after it has started the job."""
    host: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    """None until the process has ended. A negative number is a signal, as in subprocess."""
    ended_utc: str | None = None

    def is_open(self, sweep: Sweep, *, has_queue: bool) -> bool:
        """Says whether the job waits or runs; *has_queue*: a queue works on the sweep now."""
        if self.ended_utc is not None:
            return False
        if self.pid is None or self.host != socket.gethostname():
            return has_queue
        has_own_queue = process_exists(self.host, self.queue_pid, MODULE)
        return bool(has_own_queue or process_exists(self.host, self.pid, _words(sweep)))


class LocalQueue(Queue):
    name = "local"
    title = "this machine's queue"
    is_this_machine = True
    look_s = 0.5

    @property
    def problem(self) -> tuple[str, str]:
        return "", ""

    def jobs_at_once(self, cluster: ClusterConfig) -> int:
        return max(1, len(visible_gpus()) if cluster.gpus else 1)

    def require_free(self, sweep: Sweep) -> None:
        """Waits until the sweep's queue has left. Raises: RunError after LEAVING_S."""
        end = time.monotonic() + LEAVING_S
        while has_queue_process(sweep):
            if time.monotonic() > end:
                raise _busy(sweep)
            time.sleep(0.1)

    def submit(
        self,
        sweep: Sweep,
        configs: Mapping[str, TrainConfig],
        cluster: ClusterConfig,
        *,
        is_new: bool,
    ) -> dict[str, str]:
        make_private(sweep.submission_folder)
        first = 1 + max([0, *map(_number, {*sweep.info().jobs.values(), *_read_jobs(sweep)})])
        groups = _share(configs, self.jobs_at_once(cluster))
        jobs = [LocalJob(f"local-{number}", names) for number, names in enumerate(groups, first)]
        for job in jobs:
            _write_job(sweep, job)
        try:
            start_queue(sweep, [job.id for job in jobs], cluster.trust)
        except RunError as error:
            for job in jobs:
                _job_file(sweep, job.id).unlink(missing_ok=True)
            raise RefusedError(error.message, error.fix) from None
        ids = {name: job.id for job in jobs for name in job.runs}
        record_jobs(sweep, ids)
        return ids

    def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
        if sweep.owner:  # processes and locks of another user are hidden
            return {}
        has_queue, jobs = has_queue_process(sweep), _read_jobs(sweep)
        queued = {
            name: QueuedJob(
                job.id,
                is_waiting=job.pid is None,
                note="waits for its turn" if job.pid is None else "",
                node=job.host or "",
            )
            for job in jobs.values()
            if job.is_open(sweep, has_queue=has_queue)
            for name in job.runs
        }
        if has_queue and not jobs:  # a queue of an older skinjob, which wrote no files of jobs
            for run in sweep.runs():
                is_waiting = run.state().status == Status.WAITING
                note = "waits for its turn" if is_waiting else ""
                queued[run.name] = QueuedJob("", is_waiting=is_waiting, note=note)
        return queued

    def job_ends(self, sweep: Sweep, jobs: Collection[str]) -> dict[str, JobEnd | None]:
        known = _read_jobs(sweep)
        return {job: _job_end(sweep, known.get(job)) for job in jobs}

    def cancel(self, sweep: Sweep, jobs: Collection[str]) -> list[str]:
        """Ends running jobs of this machine, and returns them.

        A waiting job, and a job of another machine, read in the runs' folders that they are
        cancelled.
        """
        known = _read_jobs(sweep)
        return [job for job in sorted(jobs) if job in known and _end_process(sweep, known[job])]


QUEUE = LocalQueue


def _job_end(sweep: Sweep, job: LocalJob | None) -> JobEnd | None:
    if job is None:
        return None
    if job.exit_code is not None:
        code, number = _exit(job.exit_code)
        return JobEnd(exit_code=code, signal=number, ended_utc=job.ended_utc)
    if job.pid is None:
        last = tail(_queue_log(sweep), 1)
        words = (
            f"did not start, because this machine's queue ended{f' ({last[0]})' if last else ''}"
        )
        return JobEnd(Failure.NEVER_STARTED, words)
    return JobEnd(Status.LOST, "and its queue have gone (killed, or the machine went down)")


def _exit(code: int) -> tuple[int, int]:
    """Returns exit code and signal of a process; a shell adds 128 to the signal of its command.

    >>> _exit(1), _exit(-9), _exit(143)
    ((1, 0), (0, 9), (0, 15))
    """
    number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else 0
    return (0 if number else code), number


def has_queue_process(sweep: Sweep) -> bool:
    """Says whether a queue's process works on the sweep."""
    return is_locked(queue_lock(sweep)) or False


def queue_lock(sweep: Sweep) -> Path:
    """Returns the file that a queue's process locks until it ends."""
    return sweep.submission_folder / "queue.lock"


def _queue_log(sweep: Sweep) -> Path:
    return sweep.submission_folder / "queue.log"


def _words(sweep: Sweep) -> str:
    """Returns a part of the command of every job of a sweep."""
    return f"{sweep.name}/{sweep.submission_folder.name}"


def _job_file(sweep: Sweep, job: str) -> Path:
    return sweep.submission_folder / f"{job}.json"


def _write_job(sweep: Sweep, job: LocalJob) -> None:
    write_record(_job_file(sweep, job.id), job)


def _read_jobs(sweep: Sweep) -> dict[str, LocalJob]:
    """Returns all jobs of a sweep by id."""
    jobs = {}
    for file in sweep.submission_folder.glob("local-*.json"):
        with suppress(RunError):
            jobs[file.stem] = read_record(LocalJob, file, "a job of this machine")
    return jobs


def _number(job: str) -> int:
    """Returns the number in a job's id; 0 for a process id, the job id of an older skinjob."""
    number = job.removeprefix("local-")
    return int(number) if number != job and number.isdecimal() else 0


def _share(configs: Mapping[str, TrainConfig], num_slots: int) -> list[tuple[str, ...]]:
    """Returns the runs of each job. Each slot gets one job with heads, which starts torch once."""
    names = list(configs)
    if next(iter(configs.values())).train == "all":
        return [(name,) for name in names]
    num_jobs = max(min(num_slots, len(names)), math.ceil(len(names) / MOST_HEADS))
    return [tuple(names[number::num_jobs]) for number in range(num_jobs)]


def start_queue(sweep: Sweep, jobs: Sequence[str], trusted: Sequence[str] = ()) -> int:
    """Starts the queue's process, which outlives this process, and returns its process id.

    Raises: RunError if another such process works on the sweep, or if other users own the
    machine's locks or the sweep's submission folder.
    """
    from skinjob.queues.job import JOB_ENVIRONMENT

    slot_folder()
    make_private(sweep.submission_folder)
    words = [str(absolute(sweep.folder)), ",".join(trusted), *jobs]
    with queue_lock(sweep).open("wb") as file:
        if not lock(file.fileno(), LOOK_S) and has_queue_process(sweep):
            raise _busy(sweep)
        with _queue_log(sweep).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | JOB_ENVIRONMENT,
                start_new_session=True,
                # The child inherits the open file, and with it the lock until it ends.
                pass_fds=(file.fileno(),),
            )
    return process.pid


def _end_process(sweep: Sweep, job: LocalJob) -> bool:
    """Sends SIGTERM to the processes of a job; returns whether it had any."""
    states = [Run(sweep.folder / name).state() for name in job.runs]
    # A wrapper (conda run) may be the job's process, and may not pass the signal on.
    pids = {job.pid, *(state.pid for state in states if state.job_id == job.id)} - {None}
    running = [pid for pid in pids if process_exists(job.host, pid, _words(sweep))]
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid or 0, signal.SIGTERM)
    return bool(running) and job.ended_utc is None


def slot_folder() -> Path:
    """Returns the user's folder of locks on this machine; makes it if it is missing.

    Raises: RunError if another user could have put files into it.
    """
    folder = Path(tempfile.gettempdir()) / f"skinjob-{os.getuid()}"
    make_private(folder)
    return folder


def _busy(sweep: Sweep) -> RunError:
    watch = f"skinjob status {shlex.quote(str(sweep.folder))} --watch"
    return RunError(
        f"another process of skinjob still runs jobs of sweep {sweep.folder}",
        f"{watch}   # then try again",
    )


# --- the queue's process ------------------------------------------------------------------------


def work(sweep: Sweep, jobs: Sequence[str], trusted: Sequence[str] = ()) -> None:
    """Runs all *jobs*, one at a time in each slot.

    Raises: RunError if other users could have put pickles where the jobs read them.
    """
    make_private(sweep.submission_folder)
    require_safe(sweep.submission_folder, trusted)  # checked before sweep.json is read
    cluster = recorded_cluster(sweep)
    slots: list[str | None] = list(visible_gpus()) if cluster.gpus else []
    waiting: SimpleQueue[LocalJob] = SimpleQueue()
    all_jobs = _read_jobs(sweep)
    for job in jobs:
        waiting.put(all_jobs[job])
    threads = [
        Thread(target=_serve, args=(sweep, cluster, slot, waiting)) for slot in slots or [None]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(
    sweep: Sweep, cluster: ClusterConfig, gpu: str | None, waiting: SimpleQueue[LocalJob]
) -> None:
    while True:
        with _slot(gpu):
            try:
                job = waiting.get_nowait()
            except Empty:
                return
            _run(sweep, cluster, gpu, job)


def _run(sweep: Sweep, cluster: ClusterConfig, gpu: str | None, job: LocalJob) -> None:
    """Runs a job until it ends, and writes its exit code to its file."""
    from skinjob.queues.job import make_task, start_command, write_task

    # A run that was cancelled meanwhile has ended.
    names = [n for n in job.runs if not Run(sweep.folder / n).state().status.is_final]
    code = START_AGAIN if names else 0
    if names:
        write_task(sweep, job.id, make_task(sweep, names, cluster), cluster)
    start = " && ".join([*cluster.setup, f"exec {start_command(sweep, cluster)}"])
    while code == START_AGAIN:
        with job_output(sweep, job.id).open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-c", start],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | _environment(job.id, gpu),
            )
        job = replace(job, queue_pid=os.getpid(), host=socket.gethostname(), pid=process.pid)
        _write_job(sweep, job)
        code = _wait(process, cluster.time_min * 60)
    _write_job(sweep, replace(job, exit_code=code, ended_utc=utc_now()))


def _environment(job: str, gpu: str | None) -> dict[str, str]:
    """Returns variables that tell submitit its job, and the job its GPU."""
    return {
        "CUDA_VISIBLE_DEVICES": gpu or "",
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_PREEMPT_SIGNAL": "USR2",
        "SUBMITIT_LOCAL_JOB_ID": job,
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0",
    }


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """Returns a process's exit code; warns the process before its time limit, then kills it."""
    for wait_s, number in ((limit_s - WARNING_S, signal.SIGUSR2), (WARNING_S, signal.SIGKILL)):
        try:
            return process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    return process.wait()


@contextmanager
def _slot(gpu: str | None) -> Iterator[None]:
    """Holds a slot during the block."""
    name = "cpu" if gpu is None else re.sub(r"[^\w-]", "_", gpu)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(slot_folder() / f"slot-{name}.lock", flags, 0o600)
    try:
        lock(handle, math.inf)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    folder, trusted, *ids = sys.argv[1:]
    work(Sweep(Path(folder)), ids, [name for name in trusted.split(",") if name])
