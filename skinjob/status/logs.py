"""What a run has said, and what its job has: printed once, or followed until the run has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skinjob.status.failures import last_words
from skinjob.status.poll import surveys
from skinjob.status.status import NO_ANSWER, REFUSES, Standing, Survey, survey
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
    found, before = None, ""
    for found in surveys(run.sweep, [run], every_s=FOLLOW_S) if is_following else ():
        for line in log.new():
            yield line, True
        if (told := _stands(found)) != before and not found.runs[0].status.is_final:
            yield told, False
        before = told
    found = found or survey(run.sweep, runs=[run])
    (one,) = found.runs
    for file, lines in last_words(run, one.job, count):
        if file != run.log_file:
            yield f"{file}:", False
            for line in lines:
                yield line, True
    if one.status.is_final or not is_following:
        yield _stands(found), False
    if one.fix:
        yield f"fix: {one.fix}", False


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


def _stands(found: Survey) -> str:
    """Returns how a run stands, in a line."""
    one: Standing = found.runs[0]
    why = one.reason or one.note
    told = f"{one.run} {one.status}, epoch {one.epoch}/{one.epochs}{': ' + why if why else ''}"
    return f"{told} (SLURM {found.slurm})" if found.slurm in (NO_ANSWER, REFUSES) else told
