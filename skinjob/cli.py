"""The command line: the group of all commands, and the only place that prints errors.

The module of a command is imported when the command is called: `--help` stays quick.
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
from skinjob.console import escape_unencodable, print_unescaped, say, with_typed_options
from skinjob.errors import SkinjobError

TASKS = {
    "On the laptop": {
        "fetch-weights": ("fetch:fetch_weights", "Download and check a pretrained network"),
        "bundle": (
            "bundle:bundle",
            "Pack skinjob, torch and weights for an offline cluster",
        ),
        "pack-images": ("pack:pack_images", "Pack a folder of images into one zip, for --data"),
    },
    "On the login node, before the queue": {
        "init-site": ("site:init_site", "Ask SLURM what is available and write a site profile"),
        "doctor": ("doctor:doctor", "Check SLURM, limits, files and Python before you submit"),
        "config": ("site:config", "Show each value that submit would use, and its source"),
    },
    "On the login node": {
        "submit": ("submit:submit", "Check everything, then queue one GPU job per batch size"),
        "status": ("watch:status", "Show the status of each run, and why runs failed"),
        "logs": ("watch:logs", "Print the end of a run's log, or follow it"),
        "cancel": ("manage:cancel", "Cancel all unfinished runs of a sweep, or the named runs"),
        "retry": ("manage:retry", "Queue failed and lost runs again"),
        "list": ("watch:list_sweeps", "List all sweeps with recipe, status and accuracy"),
        "pack": ("pack:pack", "Pack the results of a sweep into one tar, for another machine"),
        "clean": ("manage:clean", "Show what can be removed, and remove it with --yes"),
    },
    "Anywhere": {
        "verify": ("bundle:verify", "Compare files with the digests that travel with them"),
        "report": ("report:report", "Turn the CSV files of a sweep into tables, plots and a page"),
        "predict": ("predict:predict", "Print what a trained run says about other images"),
        "demo": ("demo:demo", "Run every step on this machine in minutes, on drawn images"),
        "audit": ("audit:audit", "Find copies, empty images and shortcuts in a folder of images"),
        "train": ("submit:train", "Train submitted runs on this machine now, as their job would"),
    },
    "Shell": {
        "completion": ("completion:completion", "Print a script for completion with the Tab key"),
    },
}
"""The commands by task, in the order of use: module, function, and first sentence of the help."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
LIMITS = {
    errno.EAGAIN: "ulimit -u; ps -L -u $(id -u) | wc -l   # the process limit, and your processes",
    errno.EFBIG: "ulimit -f   # the limit of a file's size",
    errno.EIO: "df -h; dmesg | tail   # the disk or the file server has failed",
    errno.EMFILE: "ulimit -n   # the limit of open files",
    errno.ENFILE: "lsof | wc -l   # the machine has too many files open",
    errno.ENOMEM: "ulimit -v; free -h",
    errno.ESTALE: "cd; run the same command again   # the file server has replaced the folder",
}
"""A command that shows more, by error number, for errors that no single file causes."""
NO_THREAD = "can't start new thread"
"""Python's message when the user may start no more threads or processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Exit codes: 0 success, 1 an error that the user can fix, 2 wrong usage, 130 interrupted.
    """
    if arguments is None:
        _start_in_utf8()
    escape_unencodable()
    # numpy's OpenBLAS starts an idle thread per core. If the system allows fewer, it interrupts
    # the process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _is_in_removed_folder():
        sys.exit(_print_error("the current folder no longer exists", "cd", 1))
    try:
        code = cli.main(args=arguments, prog_name="skinjob", standalone_mode=False)
    except SkinjobError as error:
        if error.details:
            say(*error.details)
        code = _print_error(error.message, with_typed_options(error.fix), 1)
    except click.UsageError as error:
        from skinjob.commands.sources import place_of

        command = error.ctx.command_path if error.ctx else "skinjob"
        code = _print_error(place_of(error) + error.format_message(), f"{command} --help", 2)
    except (click.Abort, KeyboardInterrupt):
        code = _print_error(
            "interrupted", "run the same command again; it continues where it stopped", 130
        )
    except OSError as error:
        code = _print_system_error(error)
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        message = f"{NO_THREAD}: the system's limit for one user is reached"
        code = _print_error(message, LIMITS[errno.EAGAIN], 1)
    except MemoryError:
        code = _print_error("not enough memory", "ulimit -v; free -h", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _start_in_utf8() -> None:
    """Restarts this command in UTF-8 if the locale is not: jobs would read other paths."""
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_error(message: str, fix: str, code: int) -> int:
    say(f"error: {message}", f"fix:   {fix}", is_error=True)
    return code


def _print_system_error(error: OSError) -> int:
    """Prints what the system refused, and returns the exit code.

    Raises: OSError, the same error, if it names no file: then it is a bug.
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
    """Returns whether the folder in which the command was called no longer exists."""
    try:
        os.getcwd()  # noqa: PTH109  # Path.cwd() may come from the shell
    except FileNotFoundError:
        return True
    return False


def _drop_output() -> None:
    """Discards what stdout still buffers: Python would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Skinjob(TaskGroup):
    """The group of all commands. If a reader such as `head` closes the pipe, it ends silently."""

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
    login node  skinjob submit          one job per batch size
    anywhere    skinjob report          tables and plots
    """
    if ctx.invoked_subcommand is None:
        print_unescaped(ctx.get_help())
