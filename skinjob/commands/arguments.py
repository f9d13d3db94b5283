"""Arguments that name a sweep or a run, which several commands share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from skinjob.commands.help import SectionOption
from skinjob.config import FILES
from skinjob.errors import RunError
from skinjob.files import absolute
from skinjob.sweeps.layout import Run, Sweep, sweeps

runs_option = click.option(
    "--runs",
    cls=SectionOption,
    section=FILES,
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of all sweeps.",
)


def _complete_sweep(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = [sweep.name for sweep in sweeps(Path(ctx.params.get("runs") or "runs"))]
    items = [CompletionItem(name) for name in names if _completes(name, incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


def _complete_run(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    try:
        sweep = find_sweep(ctx.params.get("sweep"), Path(ctx.params.get("runs") or "runs"))
        return [CompletionItem(r.name) for r in sweep.runs() if _completes(r.name, incomplete)]
    except RunError:
        return []


def _completes(name: str, incomplete: str) -> bool:
    """Returns whether a name completes the word and is safe: a shell prints it unescaped."""
    return name.startswith(incomplete) and name.isprintable()


sweep_argument = click.argument("sweep", required=False, shell_complete=_complete_sweep)
"""A sweep's folder or name, for `find_sweep`; the default is the newest sweep."""

needed_sweep_argument = click.argument("sweep", shell_complete=_complete_sweep)
"""The same, but required: for commands that change something."""

sweeps_argument = click.argument("sweep", nargs=-1, shell_complete=_complete_sweep)

run_argument = click.argument("run", shell_complete=_complete_run)
"""A run's folder, or its name in the newest sweep, for `find_run`."""

runs_argument = click.argument("run", nargs=-1, shell_complete=_complete_run)
"""Runs of the sweep that the previous argument names, for `runs_of`."""


def find_sweep(sweep: str | None, runs: Path) -> Sweep:
    """Returns the sweep with this folder, or with this name in *runs*; for None the newest.

    Raises: RunError when there is no such sweep.
    """
    if sweep is None:
        return newest(runs)
    for folder in (Path(sweep), runs / sweep):
        if Sweep(folder).sweep_file.exists():
            return Sweep(_with_a_name(folder))
    raise RunError(
        f"{sweep}: no sweep, neither here nor in {runs}/",
        f"skinjob list{'' if runs == Path('runs') else f' --runs {shlex.quote(str(runs))}'}",
    )


def find_results(sweep: str, runs: Path) -> Sweep:
    """Returns the sweep that `find_sweep` finds, or the sweep in a pack: a tar, or its folder.

    Raises: RunError when there is no such sweep, or the pack is not as packed.
    """
    from skinjob.sweeps.pack import is_pack, open_pack

    path = Path(sweep)
    return open_pack(path) if is_pack(path) else find_sweep(sweep, runs)


def find_run(run: str, runs: Path) -> Run:
    """Returns the run with this folder, SWEEP/RUN in *runs*, or a name in the newest sweep.

    Raises: RunError when there is no such run.
    """
    for folder in (Path(run), runs / run):
        if Run(folder).config_file.exists():
            return Run(_with_a_name(folder))
    return runs_of(newest(runs), [run])[0]


def runs_of(sweep: Sweep, names: Sequence[str]) -> list[Run]:
    """Returns the sweep's runs with these names or folders, without repeats.

    Raises: RunError when the sweep has no such run.
    """
    runs = {run.name: run for run in sweep.runs()}
    return list(dict.fromkeys(_run_of(sweep, name, runs) for name in names))


def _run_of(sweep: Sweep, name: str, runs: Mapping[str, Run]) -> Run:
    """Returns the run of a sweep that *name* means: its name, SWEEP/RUN, or its folder.

    Runs of other sweeps may have the same name, so the whole folder is compared.
    """
    if name in runs:
        return runs[name]
    for folder in (Path(name).resolve(), (sweep.folder.parent / name).resolve()):
        run = runs.get(folder.name)
        if run and run.folder.resolve() == folder:
            return run
    raise RunError(
        f"{name}: no run of {sweep.folder}", f"skinjob status {shlex.quote(str(sweep.folder))}"
    )


def _with_a_name(folder: Path) -> Path:
    """Returns a path of the folder that ends in its name, unlike `.` and `..`."""
    if folder.name not in ("", ".."):
        return folder
    plain = Path(os.path.normpath(absolute(folder)))
    return plain if plain.samefile(folder) else folder.resolve()


def newest(runs: Path) -> Sweep:
    """Returns the newest sweep. Raises: RunError when there is no sweep."""
    by_age = sweeps(runs)
    if not by_age:
        raise RunError(f"no sweep in {runs}/", "skinjob submit")
    return by_age[-1]


def relative_to_cwd(path: Path) -> Path:
    """Returns the path relative to the current folder, if it is inside."""
    current = absolute(Path())
    return path.relative_to(current) if path.is_relative_to(current) else path
