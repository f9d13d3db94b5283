"""A small job that checks a compute node: `skinjob doctor --probe`."""

from __future__ import annotations

import json
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

from skinjob.config import MIN_TIME_MIN, ClusterConfig
from skinjob.console import StatusLine
from skinjob.doctor.finding import AGAIN, Finding, failed, ok
from skinjob.doctor.node import node_page
from skinjob.errors import RunError, SkinjobError
from skinjob.files import absolute, tail
from skinjob.ownership import require_safe
from skinjob.queues.slurm.probe_job import (
    SilentJobError,
    cancel_named,
    job_end,
    job_progress,
    queue_script,
)
from skinjob.queues.slurm.script import probe_script

SCRIPT = Path(__file__).parent / "probe_script.py"
LOOK_S = 0.5  # between two looks at the folder
ASK_S = (2, 15)  # between two questions about the queue: first and longest pause
ENDS = (signal.SIGTERM, signal.SIGHUP)  # a closing shell sends SIGHUP
LATE_S = 10  # a shared file system may take that long to show what a node has written
MAX_LINES = 5  # of the job's output


def probe(
    runs: Path, cluster: ClusterConfig, paths: Sequence[Path], packages: Sequence[str]
) -> Iterator[Finding]:
    """Queues the job, waits for it with its state on stderr, and yields the findings.

    *paths* are what a run's job opens: images and weights. *packages* are what it imports. The
    probe's folder in *runs* is private and removed afterwards. Ctrl-C, or a shell that closes,
    cancels the job.
    """
    token = secrets.token_hex(8)
    try:
        with _signals_as_ctrl_c(), _folder(runs, cluster) as folder:
            (folder / "token").write_text(token, encoding="utf-8")
            # The same paths that a run's job gets.
            job_paths = [str(absolute(path)) for path in (runs, *paths)]
            asked = {"paths": job_paths, "modules": ["safetensors", *packages]}
            (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
            job, seen = _queue_and_wait(folder, cluster)
            seen_at = time.time()
    except SkinjobError as error:
        yield replace(failed(error), name="probe")
        return
    yield replace(ok(f"job {job} ran on {seen['node']}"), name="probe")
    yield from node_page(seen, cluster, token=token, seen_at=seen_at)


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""
    # A signal that is ignored, as under nohup, stays ignored.
    numbers = [number for number in ENDS if signal.getsignal(number) == signal.SIG_DFL]

    def end(_: int, frame: object) -> None:
        for number in numbers:  # a second signal must not stop the clean-up
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
    """Yields a private folder in the folder of runs; removes afterwards all that was made.

    Raises: RunError when it cannot be made, or when other users could replace it.
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
    """Queues the job; returns its id and its result. Without a result the job is cancelled.

    Raises: ClusterError when SLURM refuses the job, or the job has no result.
    """
    script = Path(shutil.copy(SCRIPT, folder / "probe.py"))
    line, seen = StatusLine(), None
    try:
        job = queue_script(probe_script(script, cluster, time_min=MIN_TIME_MIN), cluster)
        seen = _wait(folder, job, line)
        return job, seen
    finally:
        if seen is None:
            cancel_named(folder.name)
        line.clear()  # last, because a terminal that has closed may raise here


def _wait(folder: Path, job: str, line: StatusLine) -> dict[str, Any]:
    """Returns the job's result. Raises: SilentJobError as soon as no result can come."""
    started, gone_at, next_at = time.monotonic(), None, 0.0
    pause_s: float = ASK_S[0]
    while (seen := _result(folder)) is None:
        now = time.monotonic()
        if gone_at is not None:
            if now - gone_at > LATE_S or _has_failed(job):
                raise _no_result(folder, job)
        elif now >= next_at:
            next_at, pause_s = now + pause_s, min(pause_s * 1.5, ASK_S[1])
            words, is_queued = job_progress(job)
            gone_at = None if is_queued else now
            line.show(
                f"probe: job {job}, {now - started:.0f} s (Ctrl-C cancels it): {words}", words
            )
        time.sleep(LOOK_S)
    return seen


def _result(folder: Path) -> dict[str, Any] | None:
    """Returns what the job wrote; None as long as it has written nothing."""
    # Listed, not opened: NFS remembers for a while that a name did not exist.
    if not any(path.name == "result.json" for path in folder.iterdir()):
        return None
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def _has_failed(job: str) -> bool:
    """Returns whether SLURM knows that the job failed. A job's last act is to write its result."""
    end = job_end(job)
    return end is not None and end.state != "COMPLETED"


def _no_result(folder: Path, job: str) -> SilentJobError:
    """Returns an error with what is known about a job that ended without a result."""
    end = job_end(job)
    how = f": {end.state}, exit code {end.exit_code}, on {end.node or 'no node'}" if end else ""
    text = f"job {job} ended without a result{how}"
    outputs = list(folder.glob(f"{job}*.out"))
    if not outputs:
        return SilentJobError(
            f"{text}; it could not even write its log to {folder.parent}",
            f"{AGAIN} --runs FOLDER   # a folder that the nodes see and that you may write to",
        )
    return SilentJobError(
        text,
        f"{AGAIN} --python WORDS --setup LINE   # Python or a set-up line failed",
        tuple(line for file in outputs for line in tail(file, MAX_LINES)),
    )
