"""The first thing that a job executes: `python -m skinjob.submit.start [--trust USER] FOLDER`.

The job's work is a pickle in the sweep's submission folder, and loading a pickle executes it. The
folder was safe at submit; hours later, when the job starts, it is checked again.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # the folder of submit: a random.py in it is not Python's own

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
"""Where the pickles of jobs that an earlier skinjob queued look for `Task`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks the submission folder, then executes what submitit left there for this job.

    Exits with 1 and two lines when others could have put something there.
    """
    parser = argparse.ArgumentParser(prog="python -m skinjob.submit.start")
    parser.add_argument("--trust", action="append", default=[], metavar="USER")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    escape_unencodable()  # a line of the log ends no training
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
    """Returns when nobody but the user can have written what a job loads from its folder.

    Raises: RunError when the folder is open to others, can be replaced by them, or holds a file
    of theirs.
    """
    require_private(folder)
    require_safe(folder, trusted)
    for pickle in folder.glob("*.pkl"):
        with suppress(FileNotFoundError):  # submit is just giving it the name of its job
            if pickle.lstat().st_uid != os.geteuid():
                raise RunError(
                    f"{pickle} is not a file of yours: the job does not execute it",
                    f"rm {shlex.quote(str(pickle))}; {Sweep(folder.parent).retry_command()}",
                )


if __name__ == "__main__":
    main()
