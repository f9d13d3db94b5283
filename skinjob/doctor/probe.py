"""A small job that looks from a compute node: `skinjob doctor --probe`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from skinjob.config import LEAST_TIME_MIN, ClusterConfig
from skinjob.console import StatusLine
from skinjob.doctor.finding import AGAIN, Finding, failed, ok
from skinjob.doctor.node import node_page
from skinjob.errors import ClusterError, RunError, SkinjobError
from skinjob.files import absolute, tail
from skinjob.ownership import require_safe
from skinjob.queues.slurm.client import ask, ask_queue, job_ends
from skinjob.queues.slurm.reasons import family, why_pending
from skinjob.queues.slurm.refusals import refusal
from skinjob.queues.slurm.sbatch import probe_script

SCRIPT = Path(__file__).parent / "probe_script.py"
LOOK_S = 0.5  # between two looks at the folder
ASK_S = (2, 15)  # between two questions to squeue, which answers for a whole site: first and most
ENDS = (signal.SIGTERM, signal.SIGHUP)  # what a shell that closes sends, among others
LATE_S = 10  # that a shared file system may take to show what a node has written
MOST_LINES = 5  # of the job's output
SHOW = "skinjob submit --dry-run   # with the same options: shows the script of the jobs"


class SilentJobError(ClusterError):
    """A job of a probe that wrote nothing, or that never starts."""


def probe(runs: Path, cluster: ClusterConfig, paths: Sequence[Path]) -> Iterator[Finding]:
    """Queues the job, waits for it with its state on stderr, and yields what it saw.

    *paths* are what a run's job opens: images and weights.

    Its folder in *runs* is private and removed afterwards; Ctrl-C cancels the job, and so does a
    shell that closes.
    """
    token = secrets.token_hex(8)
    try:
        with _ended_as_by_ctrl_c(), _folder(runs, cluster) as folder:
            (folder / "token").write_text(token, encoding="utf-8")
            # The very words that a run's job gets.
            words = json.dumps([str(absolute(path)) for path in (runs, *paths)])
            (folder / "paths.json").write_text(words, encoding="utf-8")
            job, seen = _queue_and_wait(folder, cluster)
            seen_at = time.time()
    except SkinjobError as error:
        yield replace(failed(error), name="probe")
        return
    yield replace(ok(f"job {job} ran on {seen['node']}"), name="probe")
    yield from node_page(seen, cluster, token=token, seen_at=seen_at)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM, and the SIGHUP of a shell that closes, raise KeyboardInterrupt meanwhile."""
    # A signal that is ignored, as under nohup, stays so.
    numbers = [number for number in ENDS if signal.getsignal(number) == signal.SIG_DFL]

    def end(_: int, frame: object) -> None:
        for number in numbers:  # a second signal must not stop the clearing away
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _folder(runs: Path, cluster: ClusterConfig) -> Iterator[Path]:
    """Yields a private folder in the folder of runs, and removes what was made.

    Raises: RunError when it cannot be made, or others could replace it.
    """
    require_safe(runs, cluster.trust)
    is_new = not runs.exists()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=absolute(runs)))  # mode 0700
    except OSError as error:
        raise RunError(
            f"probe's folder in {runs}: {error.strerror}", f"{AGAIN} --runs FOLDER"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and not any(runs.iterdir()):
            runs.rmdir()


def _queue_and_wait(folder: Path, cluster: ClusterConfig) -> tuple[str, dict[str, Any]]:
    """Queues the job and returns its id and what it wrote; else it is cancelled.

    Raises: ClusterError when sbatch refuses, or the job writes nothing.
    """
    script = Path(shutil.copy(SCRIPT, folder / "probe.py"))
    line, seen = StatusLine(), None
    try:
        job = _queue(probe_script(script, cluster, time_min=LEAST_TIME_MIN), cluster)
        seen = _wait(folder, job, line)
        return job, seen
    finally:
        if seen is None:
            # By its name: sbatch may have queued it and not lived to say under which number.
            ask("scancel", f"--user={os.geteuid()}", f"--name={folder.name}")
        line.clear()  # last: a terminal that has gone may refuse it


def _queue(script: str, cluster: ClusterConfig) -> str:
    """Queues a script and returns the job's id. Raises: ClusterError when sbatch refuses."""
    answer = ask("sbatch", "--parsable", script=script, timeout_s=None)
    if answer is None:
        raise ClusterError("there is no sbatch on PATH", "module load slurm")
    if answer.returncode:
        raise refusal(answer.stderr, cluster)
    return answer.stdout.strip().split(";")[0]  # on several clusters the cluster's name follows


def _wait(folder: Path, job: str, line: StatusLine) -> dict[str, Any]:
    """Returns what the job wrote. Raises: SilentJobError once it is known to write nothing."""
    started, gone_at, next_at = time.monotonic(), None, 0.0
    pause_s: float = ASK_S[0]
    while (seen := _written(folder)) is None:
        now = time.monotonic()
        if gone_at is not None:
            if now - gone_at > LATE_S or _has_failed(job):
                raise _nothing_written(folder, job)
        elif now >= next_at:
            next_at, pause_s = now + pause_s, min(pause_s * 1.5, ASK_S[1])
            words, is_queued = _state(job)
            gone_at = None if is_queued else now
            line.show(
                f"probe: job {job}, {now - started:.0f} s (Ctrl-C cancels it): {words}", words
            )
        time.sleep(LOOK_S)
    return seen


def _state(job: str) -> tuple[str, bool]:
    """Returns in words how a job is, and whether it is in the queue as far as is known.

    Raises: SilentJobError for a job that never starts by itself.
    """
    queue = ask_queue()
    if isinstance(queue, str):
        return f"SLURM does not answer just now{f' ({queue})' if queue else ''}", True
    if job not in queue:
        return "has left the queue", False
    if queue[job].state != "PENDING":
        return "at work", True
    why, reason = why_pending(queue[job].reason), family(queue[job].reason)
    if reason and reason.fix:
        raise SilentJobError(f"job {job} does not start by itself: {why}", SHOW)
    return f"waiting, {why}", True


def _written(folder: Path) -> dict[str, Any] | None:
    # Listed and not opened: NFS remembers for a while that a name was not there.
    if not any(path.name == "found.json" for path in folder.iterdir()):
        return None
    seen: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return seen


def _has_failed(job: str) -> bool:
    """Says whether SLURM knows that the job ended before it had written: that is its last act."""
    end = job_ends({job}).get(job)
    return end is not None and end.state != "COMPLETED"


def _nothing_written(folder: Path, job: str) -> SilentJobError:
    """Returns what is known of a job that has left the queue and wrote nothing."""
    end = job_ends({job}).get(job)
    how = f": {end.state}, exit code {end.exit_code}, on {end.node or 'no node'}" if end else ""
    text = f"job {job} ended and found nothing{how}"
    outputs = list(folder.glob(f"{job}*.out"))
    if not outputs:
        return SilentJobError(
            f"{text}; it could not even log to {folder.parent}",
            f"{AGAIN} --runs FOLDER   # one that the nodes see and you may write",
        )
    return SilentJobError(
        text,
        f"{AGAIN} --python WORDS --setup LINE   # Python or a set-up line failed",
        tuple(line for file in outputs for line in tail(file, MOST_LINES)),
    )
