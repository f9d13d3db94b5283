"""The command line: the group of all commands, and the one place where errors are printed.

A command's module is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from skinjob import __version__
from skinjob.commands.help import TaskGroup
from skinjob.console import escape_unencodable, say, say_as_is
from skinjob.errors import SkinjobError

TASKS = {
    "On the laptop": {
        "fetch-weights": ("fetch:fetch_weights", "Download and check the pretrained ResNet18"),
    },
    "On the login node, before the queue": {
        "init-site": ("site:init_site", "Ask SLURM what there is, and write a site profile of it"),
        "doctor": ("doctor:doctor", "Check all that can be known before the queue"),
        "config": ("site:config", "Show what submit would take, and where each value is from"),
    },
    "On the login node": {
        "submit": ("submit:submit", "Check everything, then queue one GPU job per batch size"),
        "status": ("watch:status", "Show the status of a sweep's runs, and what ended them"),
        "logs": ("watch:logs", "Print the end of a run's log, or follow it"),
        "cancel": (
            "manage:cancel",
            "Cancel the unfinished runs of a sweep, or only the named ones",
        ),
        "retry": ("manage:retry", "Queue failed and lost runs again"),
        "list": ("watch:list_sweeps", "List the sweeps: recipe, status of the runs, accuracy"),
        "clean": ("manage:clean", "Show what can be removed, or remove it with --yes"),
    },
    "Anywhere": {
        "report": ("report:report", "Turn the CSV files of a sweep into tables, plots and a page"),
        "demo": ("demo:demo", "Do the whole job here, on drawn images, in minutes"),
        "train": ("submit:train", "Train submitted runs here and now, as their job would"),
    },
    "Shell": {
        "completion": (
            "completion:completion",
            "Print the script by which the Tab key completes words",
        ),
    },
}
"""The commands in the order in which a person meets them: module, function and first sentence."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
LIMITS = {
    errno.EAGAIN: "ulimit -u; ps -L -u $(id -u) | wc -l   # the limit of processes, and how many",
    errno.EFBIG: "ulimit -f   # the limit on the size of a file",
    errno.EIO: "df -h; dmesg | tail   # the disk or the file server is at fault",
    errno.EMFILE: "ulimit -n   # the limit of open files",
    errno.ENFILE: "lsof | wc -l   # the machine has too many files open",
    errno.ENOMEM: "ulimit -v; free -h",
    errno.ESTALE: "cd; the same command again   # the file server has replaced the folder",
}
"""By error number: a command that shows more, for errors that are about no single file."""
NO_THREAD = "can't start new thread"
"""Python's words when the system lets the user start no more threads or processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    0 done, 1 an error that the user can mend, 2 usage, 130 interrupted.
    """
    if arguments is None:
        _start_in_utf8()
    escape_unencodable()
    # numpy's OpenBLAS starts a thread for each core, all idle, and where the system allows fewer it
    # sends itself a Ctrl-C.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _is_in_removed_folder():
        sys.exit(_print_error("the current folder does not exist any more", "cd", 1))
    try:
        code = cli.main(args=arguments, prog_name="skinjob", standalone_mode=False)
    except SkinjobError as error:
        if error.details:
            say(*error.details)
        code = _print_error(error.message, error.fix, 1)
    except click.UsageError as error:
        from skinjob.commands.sources import place_of

        command = error.ctx.command_path if error.ctx else "skinjob"
        code = _print_error(place_of(error) + error.format_message(), f"{command} --help", 2)
    except (click.Abort, KeyboardInterrupt):
        code = _print_error("interrupted", "the same command again goes on where it stopped", 130)
    except OSError as error:
        code = _print_system_error(error)
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        words = f"{NO_THREAD}: the system's limit for one user is reached"
        code = _print_error(words, LIMITS[errno.EAGAIN], 1)
    except MemoryError:
        code = _print_error("not enough memory", "ulimit -v; free -h", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _start_in_utf8() -> None:
    """Starts this command anew where the locale is not UTF-8: jobs would read other paths."""
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_error(message: str, fix: str, code: int) -> int:
    say(f"error: {message}", f"fix:   {fix}", is_error=True)
    return code


def _print_system_error(error: OSError) -> int:
    """Prints what the system refused, and returns the exit code.

    Raises: OSError, the same, if it names no file: then no folder and no disk is the reason.
    """
    if error.errno in DISK_IS_FULL:
        _drop_output()
        return _print_error(f"output was truncated: {error.strerror}", "df -h", 1)
    if error.errno in LIMITS:
        return _print_error(f"{error.strerror}", LIMITS[error.errno], 1)
    if not isinstance(error.filename, str | bytes):
        raise error
    file = Path(os.fsdecode(error.filename))
    folder = shlex.quote(str(file.absolute().parent))
    fix = f"findmnt --target {folder}" if error.errno == errno.EROFS else f"ls -ld {folder}"
    return _print_error(f"{file}: {error.strerror}", fix, 1)


def _is_in_removed_folder() -> bool:
    """Returns whether the folder in which the command was called does not exist any more."""
    try:
        os.getcwd()  # noqa: PTH109  # Path.cwd() may be what the shell remembers
    except FileNotFoundError:
        return True
    return False


def _drop_output() -> None:
    """Discards what stdout still holds: Python would try to write it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Skinjob(TaskGroup):
    """The group of all commands. A reader that leaves, as `head` does, ends it without an error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from None


@click.group(
    cls=Skinjob,
    tasks=TASKS,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={
        "auto_envvar_prefix": "SKINJOB",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="skinjob", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Fine-tune ResNet18 on an air-gapped SLURM cluster and compare batch sizes.

    \b
    laptop      skinjob fetch-weights   then scp the file
    login node  skinjob submit          a job per batch size
    anywhere    skinjob report          tables and plots
    """
    if ctx.invoked_subcommand is None:
        say_as_is(ctx.get_help())
