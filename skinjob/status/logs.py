"""The log of a run and the output of its job: once, or until the run has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skinjob.status.failures import last_words
from skinjob.status.poll import watch
from skinjob.status.status import NO_ANSWER, REFUSES, SweepStatus, sweep_status
from skinjob.sweeps.layout import Run

FOLLOW_S = 1

Line = tuple[str, bool]
"""A line, and whether it comes from a log; otherwise it is skinjob's own remark."""


def log_lines(run: Run, count: int, *, is_following: bool) -> Iterator[Line]:
    """Yields the last *count* lines of a run's log, then of its job's output, then its status.

    *is_following*: first yields new lines of the log until the run has ended, even if its job
    starts again.

    Raises: RunError if the run cannot be read.
    """
    log = _Log(run.log_file)
    for line in log.new()[-count:]:
        yield line, True
    sweep_now, before = None, ""
    for sweep_now in watch(run.sweep, [run], every_s=FOLLOW_S) if is_following else ():
        for line in log.new():
            yield line, True
        if (now := _status_line(sweep_now)) != before and not sweep_now.runs[0].status.is_final:
            yield now, False
        before = now
    sweep_now = sweep_now or sweep_status(run.sweep, runs=[run])
    (status,) = sweep_now.runs
    for file, lines in last_words(run, status.job, count):
        if file != run.log_file:
            yield f"{file}:", False
            for line in lines:
                yield line, True
    if status.status.is_final or not is_following:
        yield _status_line(sweep_now), False
    if status.fix:
        yield f"fix: {status.fix}", False


class _Log:
    """A growing file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def new(self) -> list[str]:
        """Returns the complete lines that are new since the last call."""
        try:
            with self._file.open("rb") as content:
                content.seek(self._offset)
                text = content.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


def _status_line(sweep_now: SweepStatus) -> str:
    """Returns a line with the status of a run."""
    run = sweep_now.runs[0]
    why = run.reason or run.note
    line = f"{run.run} {run.status}, {run.progress_words}{': ' + why if why else ''}"
    is_silent = sweep_now.answer in (NO_ANSWER, REFUSES)
    return f"{line} ({sweep_now.queue} {sweep_now.answer})" if is_silent else line
