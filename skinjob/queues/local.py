"""The queue of a machine without SLURM: a process that starts jobs as GPUs become free.

submitit's local executor starts every job at once, whatever the machine can carry. Here one job
at a time has a slot, and there is a slot for each GPU, or one where there is none. Slots are
locked by the machine's user, so two sweeps wait for each other.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import BinaryIO

from skinjob.config import ClusterConfig
from skinjob.errors import RunError
from skinjob.files import absolute
from skinjob.ownership import make_private, require_safe
from skinjob.queues.gpus import visible_gpus
from skinjob.queues.slurm.executor import start_local
from skinjob.status.failures import QUEUE_BEGINS, local_ending, write_ending
from skinjob.status.status import is_working, queue_lock
from skinjob.submit.folders import record_jobs, recorded_cluster
from skinjob.submit.plan import MOST_HEADS
from skinjob.submit.python import JOB_ENVIRONMENT
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import utc_now

LOOK_S = 2  # whoever looks whether a queue is at work has its lock for a moment
LEAVING_S = 30  # after its last run has said done, its process needs some seconds to leave


def start_queue(sweep: Sweep, runs: Sequence[str], trusted: Sequence[str] = ()) -> int:
    """Starts the queue's process, which outlives this one, and returns its process id.

    Raises: RunError while another such process is at work on the sweep, or when the machine's
    locks or the sweep's submission folder are not the user's own.
    """
    slot_folder()
    make_private(sweep.submission_folder)
    with (
        queue_lock(sweep).open("wb") as lock,
        (sweep.submission_folder / "queue.log").open("ab") as output,
    ):
        _take(lock, sweep)
        output.write(f"{utc_now()} {QUEUE_BEGINS}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "skinjob.queues.local"),
                *(str(absolute(sweep.folder)), ",".join(trusted), *runs),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | JOB_ENVIRONMENT,
            start_new_session=True,
            # The lock goes with the open file: it is held until that process ends.
            pass_fds=(lock.fileno(),),
        )
    return process.pid


def _take(lock: BinaryIO, sweep: Sweep) -> None:
    """Locks the open file of a sweep's queue. Raises: RunError when another process keeps it."""
    end = time.monotonic() + LOOK_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise _busy(sweep) from None
        time.sleep(0.05)


def require_free(sweep: Sweep) -> None:
    """Returns when no queue's process has the sweep in hand.

    Raises: RunError when one is still at work after the time that it takes to leave.
    """
    end = time.monotonic() + LEAVING_S
    while is_working(sweep):
        if time.monotonic() > end:
            raise _busy(sweep)
        time.sleep(0.1)


def work(sweep: Sweep, runs: Sequence[str], trusted: Sequence[str] = ()) -> None:
    """Runs them all, a job in each slot, and returns when the last has ended.

    Raises: RunError when others could have put pickles where the jobs read them.
    """
    make_private(sweep.submission_folder)
    require_safe(sweep.submission_folder, trusted)  # before sweep.json is believed
    cluster = recorded_cluster(sweep)
    slots: list[str | None] = list(visible_gpus()) if cluster.gpus else []
    slots = slots or [None]
    waiting: SimpleQueue[tuple[str, ...]] = SimpleQueue()
    for names in _jobs(sweep, runs, len(slots)):
        waiting.put(names)
    recording = Lock()
    threads = [
        Thread(target=_serve, args=(sweep, cluster, slot, waiting, recording)) for slot in slots
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _jobs(sweep: Sweep, runs: Sequence[str], num_slots: int) -> list[tuple[str, ...]]:
    """Returns the runs of each job: heads are shared out over the slots, to start torch once."""
    if Run(sweep.folder / runs[0]).config().train == "all":
        return [(name,) for name in runs]
    num_jobs = max(min(num_slots, len(runs)), math.ceil(len(runs) / MOST_HEADS))
    return [tuple(runs[number::num_jobs]) for number in range(num_jobs)]


def _serve(
    sweep: Sweep,
    cluster: ClusterConfig,
    gpu: str | None,
    waiting: SimpleQueue[tuple[str, ...]],
    recording: Lock,
) -> None:
    while True:
        with _slot(gpu):
            try:
                names = waiting.get_nowait()
            except Empty:
                return
            # Those that were cancelled while they waited are over.
            names = tuple(n for n in names if not Run(sweep.folder / n).state().status.is_final)
            if not names:
                continue
            job = start_local(sweep, names, cluster, gpu)
            with recording:
                record_jobs(sweep, dict.fromkeys(names, job.job_id))
            job.wait()
            for name in names:
                has_result = job.paths.result_pickle.exists()
                _close(Run(sweep.folder / name), job.job_id, has_result=has_result)


def _close(run: Run, job: str, *, has_result: bool) -> None:
    """Says of a run that its process left unfinished what ended it."""
    state = run.state()
    if not state.status.is_final:
        write_ending(run, state, local_ending(run, state, job, has_result=has_result))


@contextmanager
def _slot(gpu: str | None) -> Iterator[None]:
    """Holds one of the machine's places for a job."""
    name = "cpu" if gpu is None else re.sub(r"[^\w-]", "_", gpu)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(slot_folder() / f"slot-{name}.lock", flags, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def slot_folder() -> Path:
    """Returns the user's folder of locks on this machine, made if need be.

    Raises: RunError when somebody else could have put files into it.
    """
    folder = Path(tempfile.gettempdir()) / f"skinjob-{os.getuid()}"
    make_private(folder)
    return folder


def _busy(sweep: Sweep) -> RunError:
    watch = f"skinjob status {shlex.quote(str(sweep.folder))} --watch"
    return RunError(f"sweep {sweep.folder} is being worked on", f"{watch}   # and then again")


if __name__ == "__main__":
    folder, trusted, *names = sys.argv[1:]
    work(Sweep(Path(folder)), names, [name for name in trusted.split(",") if name])
