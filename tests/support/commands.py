"""The real command, as a person calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import click
import pytest

from skinjob.cli import cli
from skinjob.status.status import run_statuses
from skinjob.sweeps.layout import Sweep, sweeps

SKINJOB = (sys.executable, "-m", "skinjob")
"""The command of the tests' own Python, without its arguments."""


def all_commands() -> dict[str, click.Command]:
    """Returns every command by its name."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def import_path() -> dict[str, str]:
    """Returns the variable with which another Python imports what the tests import."""
    return {"PYTHONPATH": ":".join(sys.path)}


def skinjob(
    *arguments: str | Path, cwd: Path, code: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `skinjob` in *cwd*, piped, and returns its output; checks its exit code if given.

    On the login node of a test's cluster it is `Slurm.skinjob`.
    """
    result = subprocess.run(
        [*SKINJOB, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | import_path() | env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert code in (None, result.returncode), result.stdout + result.stderr
    return result


def as_nobody(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as another user, which only root can; `cwd` has to be open to that user."""
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
    """What a command prints, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.read: list[str] = []

    def until(self, words: str, timeout_s: float = 60) -> None:
        """Returns when a line with these words has come; a command that is late is killed."""
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
        raise AssertionError(f"{words!r} never came: {self.read}")


def refusal(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Returns the error's first line, having checked that the two lines are all there is."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == code, result.stderr
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix:   ")
    return lines[0].removeprefix("error: ")


def recorded(sweep: Sweep) -> dict[str, Any]:
    """Returns sweep.json as it is in the file, to be changed and written again."""
    return dict(json.loads(sweep.sweep_file.read_text()))


def only_sweep(runs: Path) -> Sweep:
    (found,) = sweeps(runs)
    return found


def standing(sweep: Sweep) -> dict[str, str]:
    """Returns the state of every run of a sweep, by name."""
    return {one.run: str(one.status) for one in run_statuses(sweep)}


def wait_until(is_so: Callable[[], object], timeout_s: float = 120) -> None:
    """Returns when something is so."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for(sweep: Sweep, state: str, timeout_s: float = 120) -> None:
    """Returns when every run of a sweep stands so."""
    end = time.monotonic() + timeout_s
    while set(found := standing(sweep).values()) != {state}:
        assert time.monotonic() < end, found
        assert state in ("failed", "lost") or not {"failed", "lost"} & set(found), [
            run.state() for run in sweep.runs()
        ]
        time.sleep(0.2)
