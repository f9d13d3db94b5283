"""What a run has said, and what its job has: printed once, or followed until the run has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skinjob.status.failures import last_words
from skinjob.status.poll import watch
from skinjob.status.status import NO_ANSWER, REFUSES, SweepStatus, sweep_status
from skinjob.sweeps.layout import Run

FOLLOW_S = 1

Line = tuple[str, bool]
"""A line, and whether it is one of a log, and no remark of ours."""


def log_lines(run: Run, count: int, *, is_following: bool) -> Iterator[Line]:
    """Yields the last *count* lines of a run's log, then those of its job, then how it stands.

    *is_following* waits before the job's lines until the run has ended, and yields what its log
    has meanwhile, through every new start of the job.

    Raises: RunError when the run does not read.
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
    """A file that grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def new(self) -> list[str]:
        """Returns the lines that were ended since it was last asked."""
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
    """Returns the status of a run, in a line."""
    run = sweep_now.runs[0]
    why = run.reason or run.note
    line = f"{run.run} {run.status}, epoch {run.epoch}/{run.epochs}{': ' + why if why else ''}"
    is_silent = sweep_now.answer in (NO_ANSWER, REFUSES)
    return f"{line} ({sweep_now.queue} {sweep_now.answer})" if is_silent else line
