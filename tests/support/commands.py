"""The real command, as a person calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import click
import pytest
from forked import run_forked

from skinjob.cli import cli
from skinjob.status.status import run_statuses
from skinjob.sweeps.layout import Sweep, sweeps

SKINJOB = (sys.executable, "-m", "skinjob")
"""The command of the tests' own Python, without its arguments."""
SMALL = ("--batch-sizes", "4,8", "--epochs", "2", "--cluster", "local")
"""Options of a sweep of two runs, which trains on this machine in seconds."""


def all_commands() -> dict[str, click.Command]:
    """Returns every command by its name."""
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in commands.items() if command}


def import_path() -> dict[str, str]:
    """Returns the variable with which another Python can import what the tests import."""
    return {"PYTHONPATH": ":".join(sys.path)}


def skinjob(
    *arguments: str | Path, cwd: Path, code: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `skinjob` in *cwd* without a terminal; returns its output; checks its code if given.

    The process is a fork, see `forked`. Run `SKINJOB` instead if the test sets variables that
    Python reads when it starts, and `Slurm.skinjob` for the login node of a test's cluster.
    """
    words = [str(argument) for argument in arguments]
    environment = os.environ | import_path() | env
    with tempfile.TemporaryDirectory() as output:
        exit_code = run_forked(words, cwd, environment, Path(output))
        stdout, stderr = (Path(output, name).read_text() for name in ("stdout", "stderr"))
    result = subprocess.CompletedProcess(["skinjob", *words], exit_code, stdout, stderr)
    assert code in (None, exit_code), stdout + stderr
    return result


def as_nobody(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as another user, which needs root; that user must have access to *cwd*."""
    if os.geteuid() != 0:
        pytest.skip("being another user needs root")
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *map(str, words)],
        cwd=cwd,
        env=os.environ
        | import_path()
        | {"HOME": str(cwd), "XDG_CONFIG_HOME": "/nonexistent"}
        | env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )


class Lines:
    """The lines that a running command prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.read: list[str] = []

    def until(self, words: str, timeout_s: float = 60) -> None:
        """Reads until a line holds *words*; kills the command after *timeout_s*."""
        assert self.process.stdout
        timer = Timer(timeout_s, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                self.read.append(line)
                if words in line:
                    return
        finally:
            timer.cancel()
        raise AssertionError(f"no line holds {words!r}: {self.read}")


def refusal(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Returns the message of an error; checks that stderr has its two lines and nothing else."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == code, result.stderr
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix:   ")
    return lines[0].removeprefix("error: ")


def recorded(sweep: Sweep) -> dict[str, Any]:
    """Returns the content of sweep.json, for tests that change it."""
    return dict(json.loads(sweep.sweep_file.read_text()))


def only_sweep(runs: Path) -> Sweep:
    """Returns the sweep in a folder that has only one."""
    (sweep,) = sweeps(runs)
    return sweep


def status_by_run(sweep: Sweep) -> dict[str, str]:
    """Returns the status of every run of a sweep, by the run's name."""
    return {run.run: str(run.status) for run in run_statuses(sweep)}


def wait_until(is_true: Callable[[], object], timeout_s: float = 120) -> None:
    """Waits until *is_true* returns a true value."""
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for(sweep: Sweep, status: str, timeout_s: float = 120) -> None:
    """Waits until every run of a sweep has this status."""
    end = time.monotonic() + timeout_s
    while set(statuses := status_by_run(sweep).values()) != {status}:
        assert time.monotonic() < end, statuses
        assert status in ("failed", "lost") or not {"failed", "lost"} & set(statuses), [
            run.state() for run in sweep.runs()
        ]
        time.sleep(0.2)
