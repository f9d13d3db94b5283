"""What commands have in common: the sweep that is meant, and a path as one would type it."""

from __future__ import annotations

from pathlib import Path

import click

from skinjob.errors import RunError
from skinjob.runs import Sweep, sweeps

runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of all sweeps.",
)


def newest(runs: Path) -> Sweep:
    """Returns the sweep that was made last. Raises: RunError when there is none."""
    found = sweeps(runs)
    if not found:
        raise RunError(f"no sweep in {runs}/", "skinjob submit")
    return found[-1]


def typed(path: Path) -> Path:
    """Returns the path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
