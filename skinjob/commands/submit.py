"""`skinjob submit` queues jobs; `skinjob train` does on this machine what a job does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skinjob.commands.arguments import runs_option
from skinjob.commands.help import TaskCommand
from skinjob.commands.options import FileCommand, name_option, plan_arguments, submit_options
from skinjob.console import print_table, say
from skinjob.errors import RunError
from skinjob.sweeps.layout import Run

if TYPE_CHECKING:
    from skinjob.status.status import RunStatus
    from skinjob.submit.plan import Plan
    from skinjob.submit.submit import Submission

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the configuration and the job script; write nothing."
)
wait_option = click.option(
    "--wait",
    envvar="SKINJOB_SUBMIT_WAIT",
    is_flag=True,
    help="Wait until all runs have ended; exit code 1 if a run failed.",
)


MAX_SHOWN = 5  # runs that are queued again; a job that fails takes many runs with it


@click.command(cls=FileCommand)
@submit_options
@runs_option
@name_option
@dry_run_option
@wait_option
def submit(dry_run: bool, wait: bool, **options: Any) -> None:
    """Check everything, then queue one GPU job per batch size.

    If you submit the same sweep again, only failed, lost and cancelled runs are queued.

    \b
    Example:
      skinjob submit --batch-sizes 32,64,128,256 --partition gpu
      skinjob submit --dry-run
    """
    from skinjob.submit.plan import make_plan

    print_and_submit(make_plan(**plan_arguments(options)), dry_run, wait)


def print_and_submit(plan: Plan, is_dry: bool, is_waiting: bool) -> None:
    """Prints the plan and queues its jobs; if *is_dry*, prints the script instead."""
    print_plan(plan)
    if is_dry:
        _print_dry_run(plan)
    else:
        submit_and_print(plan, is_waiting)


def print_plan(plan: Plan) -> None:
    for label, value in plan.lines():
        say(f"{label:<9}{value}")


def _print_dry_run(plan: Plan) -> None:
    config = next(iter(plan.configs.values()))
    say("", "# configuration, the same for every run")
    for key, value in {**config.recipe(), **vars(plan.cluster), **plan.study.stated()}.items():
        say(f"{key} = {value}")
    say("", "# runs", *plan.configs)
    if script := plan.queue.script(plan.sweep, plan.configs, plan.cluster):
        say("", "# job script", *script.split("\n"), keeps="\t")
    say("", "nothing was made or queued (--dry-run)")


def submit_and_print(plan: Plan, is_waiting: bool) -> None:
    """Submits, prints the runs and the next command, and waits if *is_waiting*."""
    from skinjob.submit.submit import submit as submit_plan
    from skinjob.submit.submit import wait

    submission = submit_plan(plan)
    say()
    again = [run for name, run in submission.before.items() if name in submission.queued]
    for run in again[:MAX_SHOWN]:
        _print_status(run)
    if len(again) > MAX_SHOWN:
        say(f"and {len(again) - MAX_SHOWN} more")
    if again:
        say()
    print_table(
        ("run", "batch size", "lr", "seed", "updates", "status", "job"),
        [_row(plan, submission, name) for name in plan.configs],
    )
    folder = shlex.quote(str(submission.sweep.folder))
    if is_waiting:
        say("", "waiting; after Ctrl-C the jobs continue")
        say(f"watch: skinjob status {folder} --watch")
        are_done = wait(submission.sweep, tuple(plan.configs), _print_status)
        say("", f"next: skinjob report {folder}")
        if not are_done:
            raise RunError(f"not every run of {folder} is done", f"skinjob status {folder}")
        return
    first = shlex.quote(str(submission.sweep.folder / next(iter(plan.configs))))
    say("", f"follow: skinjob status {folder} --watch")
    say(f"logs:   skinjob logs {first} -f")
    say(f"next:   skinjob report {folder}")


def _row(plan: Plan, submission: Submission, name: str) -> tuple[str, ...]:
    """Returns a run's line in the table that `submit` prints."""
    config = plan.configs[name]
    numbers = (config.batch_size, config.lr, config.seed, plan.num_updates(config))
    if name in submission.queued:
        status = ("waiting", submission.jobs[name])
    else:
        status = (submission.before[name].status, "not repeated")
    return (name, *map(str, numbers), *status)


def _print_status(run: RunStatus) -> None:
    failure = f", {run.failure}" if run.failure else ""
    reason = f": {run.reason}" if run.reason else ""
    say(f"{run.run} {run.status}{failure}{reason}")


@click.command(cls=TaskCommand)
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
def train(run: tuple[Path, ...]) -> None:
    """Train submitted runs on this machine now, as their job would.

    All runs must belong to the same sweep. A run continues after its last finished epoch.

    \b
    Example:
      skinjob train runs/my-sweep/bs0032-lr0.01-seed0
    """
    for folder in run:
        Run(folder).sweep.require_own("retry", folder.name)
        Run(folder).config()  # a folder that is no run needs no torch to be refused
    from skinjob.train.job import run_job

    if skipped := run_job(run):
        raise RunError("; ".join(skipped), f"tail -n 40 {shlex.quote(str(run[0]))}/train.log")
