"""The log of a job: each line goes to the log files of its runs and to stdout."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from skinjob.console import say
from skinjob.sweeps.layout import Run

log = logging.getLogger("skinjob")


@contextmanager
def logging_to(runs: Sequence[Run]) -> Iterator[None]:
    """Appends the log to the file of each run, and prints it.

    A record with a `run` goes only to the file of that run. If a job has several runs, stdout shows
    the name of the run.
    """
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handlers: list[logging.Handler] = [_RunLogs(runs), _Printer(names_runs=len(runs) > 1)]
    for handler in handlers:
        handler.setFormatter(formatter)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class _RunLogs(logging.Handler):
    """Appends a record to the log of its run, or of all runs; keeps no file open."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self.files = {run.name: run.log_file for run in runs}

    def emit(self, record: logging.LogRecord) -> None:
        run = getattr(record, "run", None)
        try:
            for name, file in self.files.items():
                if run in (None, name):
                    with file.open("a", encoding="utf-8") as lines:
                        lines.write(self.format(record) + "\n")
        except OSError:  # training continues without a log
            self.handleError(record)


class _Printer(logging.Handler):
    """Prints to the current sys.stdout, which a progress bar replaces."""

    def __init__(self, *, names_runs: bool) -> None:
        super().__init__()
        self.names_runs = names_runs

    def emit(self, record: logging.LogRecord) -> None:
        run = getattr(record, "run", None) if self.names_runs else None
        text = self.format(record) + (f"  ({run})" if run else "")
        with suppress(OSError):  # training continues if a pipe is closed or a disk full
            say(*text.split("\n"), keeps="\t")  # a traceback has several lines
