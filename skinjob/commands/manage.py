"""On the login node, of what was submitted: `skinjob retry`, `skinjob cancel`, `skinjob clean`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from skinjob.commands.arguments import (
    find_sweep,
    needed_sweep_argument,
    runs_argument,
    runs_of,
    runs_option,
    sweep_argument,
)
from skinjob.commands.help import TaskCommand
from skinjob.commands.options import changed_cluster_options
from skinjob.commands.submit import dry_run_option, print_and_submit, wait_option
from skinjob.console import ask, counted, print_sentence, print_table, say
from skinjob.errors import RunError
from skinjob.sweeps.layout import BY_YOU, Sweep, sweeps
from skinjob.words import list_first

if TYPE_CHECKING:
    from skinjob.status.status import Standing
    from skinjob.submit.cancel import Cancellation
    from skinjob.submit.clean import Clearing

WITHOUT = {
    "caches": "are made again when they are needed, which takes time",
    "failed": "a run without its checkpoint starts at its first epoch when it is queued again",
    "submission": "logs of jobs that ended well; what a failed run's job said is kept",
}
"""What is lost with each kind."""

MOST_NAMED = 3  # runs of a kind; a sweep may have a thousand


@click.command(cls=TaskCommand)
@needed_sweep_argument
@runs_argument
@click.option("--cancelled", is_flag=True, help="Queue cancelled runs again, too.")
@changed_cluster_options
@runs_option
@dry_run_option
@wait_option
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    sweep: str,
    run: tuple[str, ...],
    cancelled: bool,
    runs: Path,
    dry_run: bool,
    wait: bool,
    **cluster: Any,
) -> None:
    """Queue again the runs that failed or were lost.

    Each goes on where it was. Runs that you cancelled are queued again when they are named, or
    with --cancelled. Recipe, images, weights and what the jobs ask for are those of the sweep, but
    for the options given here.

    \b
    Example:
      skinjob retry my-sweep --time 240
      skinjob retry my-sweep bs0032-lr0.01-seed0
    """
    from skinjob.submit.retry import plan_retry

    chosen = find_sweep(sweep, runs)
    names = [one.name for one in runs_of(chosen, run)]
    found = plan_retry(chosen, names, takes_cancelled=cancelled, **_given(ctx, cluster))
    _tell_left(found.left)
    if found.plan is None:
        say(f"nothing of {chosen.folder} to queue again")
    else:
        print_and_submit(found.plan, dry_run, wait)


def _given(ctx: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that are given on the command line."""
    typed_in = ParameterSource.COMMANDLINE
    return {
        name: value for name, value in values.items() if ctx.get_parameter_source(name) == typed_in
    }


def _tell_left(left: Sequence[Standing]) -> None:
    """Prints which runs are left alone, and why, a line for each state."""
    states = sorted({one.state for one in left})
    for state in states:
        names = [one.run for one in left if one.state == state]
        hint = "; --cancelled takes them, too" if state == "cancelled" else ""
        print_sentence(f"left alone, {state}{hint}: {list_first(names, MOST_NAMED)}")


@click.command(cls=TaskCommand)
@needed_sweep_argument
@runs_argument
@runs_option
@click.option("--yes", is_flag=True, help="Do not ask, where it is the whole sweep.")
def cancel(sweep: str, run: tuple[str, ...], runs: Path, yes: bool) -> None:
    """Cancel a sweep, or those of its runs that are named.

    Runs that wait or are at work are cancelled; what is done stays. `skinjob retry SWEEP RUN`
    takes a cancelled run up again where it was.

    \b
    Example:
      skinjob cancel my-sweep
      skinjob cancel my-sweep bs0032-lr0.01-seed0
    """
    from skinjob.submit.cancel import cancel as cancel_runs

    chosen = find_sweep(sweep, runs)
    names = [one.name for one in runs_of(chosen, run)]
    if not names and not yes and sys.stdin.isatty() and not _is_sure(chosen):
        say("nothing was cancelled")
        return
    _tell_cancelled(chosen, cancel_runs(chosen, names))


def _is_sure(sweep: Sweep) -> bool:
    """Asks, where something would be lost: runs at work; returns whether to go on."""
    from skinjob.status.status import standings

    running = sum(one.state == "running" for one in standings(sweep))
    return not running or ask(f"{counted(running, 'run')} of {sweep.folder} at work. Cancel all?")


def _tell_cancelled(sweep: Sweep, what: Cancellation) -> None:
    """Prints what became of each run and job, and how to take the runs up again."""
    rows = [(name, BY_YOU) for name in what.cancelled]
    rows += [(one.run, f"left alone: {one.state}") for one in what.left]
    print_table(("run", "state"), rows, left=("state",))
    for words, jobs in (("told to end", what.ended), ("goes on, with other runs", what.going_on)):
        if jobs:
            say()
            print_sentence(f"{words}: job {', '.join(jobs)}")
    if what.cancelled:
        is_few = len(what.cancelled) <= MOST_NAMED
        again = sweep.retry_command(*(what.cancelled if is_few else ["--cancelled"]))
        say("", f"back:  {again}")
    else:
        say()
    say(f"next:  skinjob status {_quoted(sweep)}")


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option("--caches", is_flag=True, help="Views and compiled code, which all sweeps share.")
@click.option("--failed", is_flag=True, help="Checkpoints of failed runs, and half-written files.")
@click.option("--submission", is_flag=True, help="Job scripts, pickles and output of past jobs.")
@click.option("--yes", is_flag=True, help="Remove it. Without this it is only shown.")
def clean(sweep: str | None, runs: Path, yes: bool, **kinds: bool) -> None:
    """Show what could be removed, and how much it is.

    Of a sweep or of all; --yes removes it. Results stay, and so do sweeps with runs that wait
    or are at work. Without --caches, --failed or --submission it is all three; of one sweep
    without the caches.

    \b
    Example:
      skinjob clean
      skinjob clean --caches --yes
    """
    from skinjob.submit.clean import KINDS, clear, plan_clearing

    if not sweep and not runs.is_dir():
        raise RunError(f"--runs {runs}: no such folder", "skinjob clean --runs FOLDER")
    chosen = [find_sweep(sweep, runs)] if sweep else sweeps(runs)
    wanted = [name for name in KINDS if kinds[name]] or list(KINDS[1:] if sweep else KINDS)
    act = clear if yes else plan_clearing
    _tell_cleared(act(chosen[0].folder.parent if sweep else runs, chosen, wanted), yes)


def _tell_cleared(what: Clearing, is_done: bool) -> None:
    """Prints a line for each kind and place, what is left alone, and how to go on."""
    rows = [
        (part.kind, str(part.folder), str(part.num_files), f"{part.num_bytes:,}")
        for part in what.parts
    ]
    if rows:
        print_table(("what", "where", "files", "bytes"), rows, left=("where",))
        say()
        for kind in dict.fromkeys(part.kind for part in what.parts):
            print_sentence(f"{kind}: {WITHOUT[kind]}")
    for folder, reason in what.left:
        print_sentence(f"left alone: {folder}: {reason}")
    size = f"{what.num_bytes:,} bytes ({what.num_bytes / 1e6:,.1f} MB)"
    if not rows:
        say("nothing to remove")
    elif is_done:
        say(f"removed: {size}")
    else:
        print_sentence(f"to remove: {size}; nothing was yet: the same command with --yes does")


def _quoted(sweep: Sweep) -> str:
    return shlex.quote(str(sweep.folder))
