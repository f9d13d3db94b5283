"""The start of every job: `python -m skinjob.submit.start [--trust USER] FOLDER`.

The job's work is a pickle in the sweep's submission folder, and loading a pickle executes it. The
folder was safe at submit; hours later, when the job starts, it is checked again.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # the folder of submit: a random.py in it must not replace Python's own

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skinjob.console import escape_unencodable
from skinjob.errors import RunError
from skinjob.ownership import require_private, require_safe
from skinjob.sweeps.layout import Sweep

ONCE_IN = ("skinjob.submit.executor", "skinjob.queues.slurm.executor")
"""Modules in which pickles of earlier versions look for `Task`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks the submission folder, then executes this job's pickle in it.

    Exits with 1 and two lines if another user could have written to the folder.
    """
    parser = argparse.ArgumentParser(prog="python -m skinjob.submit.start")
    parser.add_argument("--trust", action="append", default=[], metavar="USER")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    escape_unencodable()  # a character in a log line must not end a training
    try:
        require_own_pickles(options.folder, options.trust)
    except RunError as error:
        sys.exit(f"error: {error.message}\nfix:   {error.fix}")
    except OSError as error:
        place = shlex.quote(str(options.folder))
        sys.exit(f"error: {options.folder}: {error.strerror}\nfix:   ls -ld {place}")
    from submitit.core.submission import process_job

    from skinjob.queues import job

    for name in ONCE_IN:
        sys.modules.setdefault(name, job)
    process_job(options.folder)


def require_own_pickles(folder: Path, trusted: Sequence[str]) -> None:
    """Checks that only the user can have written the pickles in a folder.

    Raises: RunError if other users can open or replace the folder, or own a pickle in it.
    """
    require_private(folder)
    require_safe(folder, trusted)
    for pickle in folder.glob("*.pkl"):
        with suppress(FileNotFoundError):  # submit renames a pickle when it knows its job
            if pickle.lstat().st_uid != os.geteuid():
                raise RunError(
                    f"{pickle} belongs to another user: the job does not execute it",
                    f"rm {shlex.quote(str(pickle))}; {Sweep(folder.parent).retry_command()}",
                )


if __name__ == "__main__":
    main()
