"""`skinjob retry`, `skinjob cancel` and `skinjob clean` change what was submitted."""

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
from skinjob.console import ask, print_sentence, print_table, say
from skinjob.errors import RunError
from skinjob.sweeps.layout import Sweep, sweeps
from skinjob.sweeps.records import Status
from skinjob.words import list_first, pluralize

if TYPE_CHECKING:
    from skinjob.status.status import RunStatus
    from skinjob.submit.cancel import Cancellation
    from skinjob.submit.clean import Clearing

CONSEQUENCES = {
    "caches": "are computed again when needed, which takes time",
    "failed": "a run without a checkpoint starts again at its first epoch",
    "submission": "logs of jobs that ended well; the output of failed jobs is kept",
}
"""What removing each kind means."""

MAX_NAMED = 3  # runs with the same status; a sweep may have a thousand


@click.command(cls=TaskCommand)
@needed_sweep_argument
@runs_argument
@click.option("--cancelled", is_flag=True, help="Also queue cancelled runs again.")
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
    """Queue failed and lost runs again.

    Each run continues after its last finished epoch. Cancelled runs are queued only if you name
    them or add --cancelled. Options given here replace those of the sweep.

    \b
    Example:
      skinjob retry my-sweep --time 240
      skinjob retry my-sweep bs0032-lr0.01-seed0
    """
    from skinjob.submit.retry import plan_retry

    chosen = find_sweep(sweep, runs)
    names = [run.name for run in runs_of(chosen, run)]
    source = ctx.get_parameter_source
    given = {n: value for n, value in cluster.items() if source(n) == ParameterSource.COMMANDLINE}
    retry = plan_retry(chosen, names, takes_cancelled=cancelled, **given)
    _print_left(retry.left)
    if retry.plan is None:
        say(f"nothing in {chosen.folder} to queue again")
    else:
        print_and_submit(retry.plan, dry_run, wait)


def _print_left(left: Sequence[RunStatus]) -> None:
    """Prints which runs stay as they are, a line for each status."""
    for status in sorted({run.status for run in left}):
        names = [run.run for run in left if run.status == status]
        hint = "; add --cancelled to queue them" if status == Status.CANCELLED else ""
        print_sentence(f"left alone, {status}{hint}: {list_first(names, MAX_NAMED)}")


@click.command(cls=TaskCommand)
@needed_sweep_argument
@runs_argument
@runs_option
@click.option("--yes", is_flag=True, help="Cancel a whole sweep without asking.")
def cancel(sweep: str, run: tuple[str, ...], runs: Path, yes: bool) -> None:
    """Cancel all unfinished runs of a sweep, or the named runs.

    Results stay. `skinjob retry SWEEP RUN` continues a cancelled run after its last finished epoch.

    \b
    Example:
      skinjob cancel my-sweep
      skinjob cancel my-sweep bs0032-lr0.01-seed0
    """
    from skinjob.submit.cancel import cancel as cancel_runs

    chosen = find_sweep(sweep, runs)
    names = [run.name for run in runs_of(chosen, run)]
    if not names and not yes and sys.stdin.isatty() and not _is_sure(chosen):
        say("nothing was cancelled")
    else:
        _print_cancelled(chosen, cancel_runs(chosen, names))


def _is_sure(sweep: Sweep) -> bool:
    """Returns whether all runs may be cancelled; asks the user if some are running."""
    from skinjob.status.status import run_statuses

    num = sum(run.status == Status.RUNNING for run in run_statuses(sweep))
    return not num or ask(f"{pluralize(num, 'run')} of {sweep.folder} running. Cancel all?")


def _print_cancelled(sweep: Sweep, result: Cancellation) -> None:
    """Prints what happened to each run and job, and how to continue the runs."""
    rows = [(name, "cancelled") for name in result.cancelled]
    rows += [(run.run, f"left alone: {run.status}") for run in result.left]
    print_table(("run", "status"), rows, left=("status",))
    for words, jobs in (("ending", result.ended), ("continues with other runs", result.going_on)):
        if jobs:
            say()
            print_sentence(f"{words}: job {', '.join(jobs)}")
    say()
    if result.cancelled:
        is_few = len(result.cancelled) <= MAX_NAMED
        say(f"back:  {sweep.retry_command(*(result.cancelled if is_few else ['--cancelled']))}")
    say(f"next:  skinjob status {shlex.quote(str(sweep.folder))}")


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option("--caches", is_flag=True, help="Views and decoded images, which all sweeps share.")
@click.option("--failed", is_flag=True, help="Checkpoints of failed runs, and half-written files.")
@click.option("--submission", is_flag=True, help="Job scripts, pickles and output of past jobs.")
@click.option("--yes", is_flag=True, help="Remove them. The default is to show them only.")
def clean(sweep: str | None, runs: Path, yes: bool, **kinds: bool) -> None:
    """Show what can be removed, and remove it with --yes.

    The default is all sweeps. Results stay, and so do sweeps with waiting or running runs. Without
    an option it means all three kinds; for a SWEEP only --failed and --submission.

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
    _print_cleared(act(chosen[0].folder.parent if sweep else runs, chosen, wanted), yes)


def _print_cleared(what: Clearing, is_done: bool) -> None:
    """Prints a line for each kind and folder, what stays, and how to continue."""
    rows = [
        (part.kind, str(part.folder), str(part.num_files), f"{part.num_bytes:,}")
        for part in what.parts
    ]
    if rows:
        print_table(("what", "where", "files", "bytes"), rows, left=("where",))
        say()
        for kind in dict.fromkeys(part.kind for part in what.parts):
            print_sentence(f"{kind}: {CONSEQUENCES[kind]}")
    for folder, reason in what.left:
        print_sentence(f"left alone: {folder}: {reason}")
    size = f"{what.num_bytes:,} bytes ({what.num_bytes / 1e6:,.1f} MB)"
    if not rows:
        say("nothing to remove")
    elif is_done:
        say(f"removed: {size}")
    else:
        print_sentence(f"would remove: {size}; nothing removed yet: add --yes")
