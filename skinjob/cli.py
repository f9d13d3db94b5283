"""The command line: parse, call one function, print what happened, suggest the next command.

Heavy libraries are imported inside the commands that use them, so that `--help` is quick.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skinjob import __version__
from skinjob.config import DEFAULTS, ClusterConfig, TrainConfig
from skinjob.console import print_table, shown
from skinjob.errors import RunError, SkinjobError, WeightsError
from skinjob.options import cluster_options, read_job, recipe_options, told_in
from skinjob.runs import Run, Sweep, sweeps

if TYPE_CHECKING:
    from skinjob.submit.plan import Plan
    from skinjob.submit.state import Standing
    from skinjob.submit.submit import Submission

# Images are per class. At the recipe's lr of 0.01 a head barely moves in so few updates.
DEMO_TRAIN, DEMO_TEST, DEMO_EPOCHS, DEMO_LR = 160, 40, 10, 0.1

MOST_TOLD = 5  # faults told one by one; a job that fails takes many runs along
LINES_TOLD = 5  # of a log


runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of all sweeps.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    0 done, 1 a fault that the user can mend, 2 usage, 130 interrupted.
    """
    try:
        code = cli.main(args=arguments, prog_name="skinjob", standalone_mode=False)
    except SkinjobError as fault:
        for line in fault.details:
            click.echo(line)
        code = _tell(fault.message, fault.remedy, 1)
    except click.UsageError as fault:
        command = fault.ctx.command_path if fault.ctx else "skinjob"
        code = _tell(told_in(fault) + fault.format_message(), f"{command} --help", 2)
    except (click.Abort, KeyboardInterrupt):
        code = _tell("interrupted", "the same command again goes on where it stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, remedy: str, code: int) -> int:
    click.echo(f"error: {shown(message)}\nfix:   {shown(remedy)}", err=True)
    return code


@click.group(
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
    laptop        skinjob fetch-weights        then scp the file
    login node    skinjob submit               one GPU job per batch size
    anywhere      skinjob report               tables and plots
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="weights",
    show_default=True,
    help="Folder to write to.",
)
@click.option(
    "--source",
    help="A mirror's URL, or a file that is there already. [default: download.pytorch.org]",
)
@click.option(
    "--sha256", help="Digest of the source, 64 hex digits; needed when its name carries none."
)
def fetch_weights(out: Path, source: str | None, sha256: str | None) -> None:
    """Download, check and serialize the pretrained ResNet18, ready for scp. Needs no torch.

    \b
    Example:
      skinjob fetch-weights
      scp weights/resnet18.safetensors weights/SHA256SUMS cluster:skinjob/weights/
    """
    from skinjob.fetch.weights import fetch_weights as fetch

    fetched = fetch(out, source, sha256)
    click.echo(f"{fetched.path} {'is there already, and whole' if fetched.already else 'written'}")
    click.echo(f"sha256  {fetched.sha256}")
    click.echo(f"size    {fetched.size_bytes:,} bytes")
    click.echo(f"source  {fetched.source}")
    click.echo(f"\nnext:  {fetched.scp_line}")
    click.echo("there: (cd skinjob/weights && sha256sum -c SHA256SUMS)")


@cli.command()
@recipe_options
@cluster_options
@runs_option
@click.option("--name", help="The sweep's folder in it. [default: made of date and recipe]")
@click.option(
    "--job",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_job,
    help="Job file (TOML) with other defaults. [default: jobs/default.toml]",
)
@click.option(
    "--dry-run", is_flag=True, help="Print configuration and sbatch script, and make nothing."
)
@click.option(
    "--wait",
    "is_waiting",
    envvar="SKINJOB_SUBMIT_WAIT",
    is_flag=True,
    help="Return when all runs have ended; exit 1 if one failed.",
)
def submit(
    train: str,
    data: str,
    skip_bad_images: bool,
    weights: str,
    batch_sizes: tuple[int, ...],
    epochs: int,
    lr: tuple[float, ...] | None,
    schedule: str | None,
    seeds: tuple[int, ...],
    device: str,
    precision: str,
    runs: Path,
    name: str | None,
    dry_run: bool,
    is_waiting: bool,
    **cluster: Any,
) -> None:
    """Queue one training job per batch size, after checking all that can be checked here.

    Submitted again, the same sweep queues only what has failed or was lost.

    \b
    Example:
      skinjob submit --batch-sizes 32,64,128,256 --partition gpu
      skinjob submit --dry-run
    """
    from skinjob.submit.plan import make_plan

    lrs = lr or (DEFAULTS[train]["lr"],)
    config = TrainConfig(
        train=train,
        data=data,
        weights=weights,
        batch_size=batch_sizes[0],
        epochs=epochs,
        lr=lrs[0],
        schedule=schedule or DEFAULTS[train]["schedule"],
        seed=seeds[0],
        device=device,
        precision=precision,
    )
    cluster["setup"] = tuple(cluster["setup"])
    plan = make_plan(
        train=config,
        batch_sizes=batch_sizes,
        lrs=lrs,
        seeds=seeds,
        cluster=ClusterConfig(**cluster),
        runs=runs,
        name=name,
        skip_bad_images=skip_bad_images,
    )
    _print_plan(plan)
    if dry_run:
        _print_dry_run(plan)
        return
    _submit(plan, is_waiting)


def _print_plan(plan: Plan) -> None:
    for label, value in plan.lines():
        click.echo(f"{label:<9}{value}")


def _print_dry_run(plan: Plan) -> None:
    from skinjob.submit.executor import sbatch_script
    from skinjob.submit.plan import jobs_of

    config = next(iter(plan.configs.values()))
    click.echo("\n# configuration, the same for every run")
    for key, value in {**config.recipe(), **vars(plan.cluster)}.items():
        click.echo(f"{key} = {value}")
    click.echo("\n# runs")
    click.echo("\n".join(plan.configs))
    if plan.cluster.cluster == "slurm":
        click.echo("\n# sbatch script")
        click.echo(sbatch_script(plan.sweep, len(jobs_of(plan.configs)), plan.cluster))
    click.echo("\nnothing was made or queued (--dry-run)")


def _submit(plan: Plan, is_waiting: bool) -> None:
    """Submits, prints the runs and the next command, and waits if asked to."""
    from skinjob.submit.submit import submit as submit_plan
    from skinjob.submit.submit import wait

    submission = submit_plan(plan)
    click.echo()
    again = [one for name, one in submission.before.items() if name in submission.queued]
    for one in again[:MOST_TOLD]:
        _tell_standing(one)
    if len(again) > MOST_TOLD:
        click.echo(f"and {len(again) - MOST_TOLD} more that ended so")
    if again:
        click.echo()
    print_table(
        ("run", "batch size", "lr", "seed", "updates", "state", "job"),
        [_row(plan, submission, name) for name in plan.configs],
    )
    folder = shlex.quote(str(submission.sweep.folder))
    if is_waiting:
        click.echo(f"\nwaiting; Ctrl-C leaves the jobs at work. Logs: tail -f {folder}/*/train.log")
        ok = wait(submission.sweep, tuple(plan.configs), _tell_standing)
        click.echo(f"\nnext: skinjob report {folder}")
        if not ok:
            raise RunError(f"not every run of {folder} is done", f"skinjob status {folder}")
        return
    click.echo(f"\nfollow: tail -f {folder}/*/train.log")
    click.echo(f"next:   skinjob report {folder}")


def _row(plan: Plan, submission: Submission, name: str) -> tuple[str, ...]:
    """Returns a run's line in the table that `submit` prints."""
    config = plan.configs[name]
    numbers = (config.batch_size, config.lr, config.seed, plan.num_updates(config))
    if name in submission.queued:
        state = ("queued", submission.jobs.get(name, "this machine"))
    else:
        state = (submission.before[name].state, "not repeated")
    return (name, *map(str, numbers), *state)


def _tell_standing(one: Standing) -> None:
    """Prints how a run stands, in a line."""
    words = f"{one.state}, {one.fault}" if one.fault not in (None, one.state) else one.state
    click.echo(f"{one.run} {words}{': ' + one.error if one.error else ''}")


@cli.command()
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
def train(run: tuple[Path, ...]) -> None:
    """Train submitted runs of one sweep here and now, as their job would.

    A run goes on after its last finished epoch.

    \b
    Example:
      skinjob train runs/my-sweep/bs0032-lr0.01-seed0
    """
    from skinjob.train.job import run_job

    left_alone = run_job(run)
    if left_alone:
        raise RunError("; ".join(left_alone), f"tail -n 40 {shlex.quote(str(run[0]))}/train.log")


@cli.command()
@click.argument("sweep", required=False, type=click.Path(path_type=Path))
@runs_option
@click.pass_context
def status(ctx: click.Context, sweep: Path | None, runs: Path) -> None:
    """Show how the runs of a sweep stand, by default the newest, and what ended those that failed.

    Exit code 0: all are done; 3: some wait or are at work; 1: some failed and no other is left.

    \b
    Example:
      skinjob status
      skinjob status runs/my-sweep
    """
    from skinjob.submit.state import standings

    chosen = Sweep(sweep) if sweep else newest(runs)
    found = standings(chosen)
    _print_standings(found)
    _print_faults(chosen, found)
    states = {one.state for one in found}
    ctx.exit(3 if states & {"queued", "running"} else 0 if states <= {"done"} else 1)


def _print_standings(found: Sequence[Standing]) -> None:
    """Prints a line for each run; the jobs are left out where the terminal is narrow."""
    is_narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < 80
    columns = ("run", "state", "epoch", *(() if is_narrow else ("job",)), "why")
    rows = [
        (
            one.run,
            one.state,
            f"{one.epoch}/{one.epochs}",
            *(() if is_narrow else (one.job or "none",)),
            one.why,
        )
        for one in found
    ]
    print_table(columns, rows, words=("state", "why"))


def _print_faults(sweep: Sweep, found: Sequence[Standing]) -> None:
    """Prints what is wrong with runs and what to do, once for all runs that one job took along."""
    from skinjob.submit.faults import last_words

    groups: dict[tuple[str | None, ...], list[Standing]] = {}
    for one in found:
        if one.error or one.state == "failed":
            groups.setdefault((one.state, one.fault, one.job or one.run), []).append(one)
    for one, *others in list(groups.values())[:MOST_TOLD]:
        more = f" and {len(others)} more of its job" if others else ""
        click.echo(f"\n{one.run}{more}: {one.fault or one.state}")
        click.echo(_indented(one.error or "it does not say why"))
        for file, lines in last_words(Run(sweep.folder / one.run), one.job, LINES_TOLD):
            click.echo(f"  {_shown(file)}:")
            for line in lines:
                click.echo(f"  | {line}")
        if one.remedy:
            click.echo(f"  fix: {one.remedy}")
    rest = sum(map(len, list(groups.values())[MOST_TOLD:]))
    if rest:
        click.echo(f"\nand {rest} more; the reasons are in the state.json of each")


def _indented(sentence: str) -> str:
    """Returns a sentence two columns in; broken between words where a terminal needs it."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(sentence) + 2
    return textwrap.fill(
        sentence,
        width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


@cli.command()
@click.argument("sweep", nargs=-1, type=click.Path(path_type=Path))
@runs_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the report. [default: SWEEP/report]"
)
def report(sweep: tuple[Path, ...], runs: Path, out: Path | None) -> None:
    """Merge the CSVs of a sweep, by default the newest, into tables and plots. Needs no torch.

    \b
    Example:
      skinjob report
      skinjob report runs/my-sweep
    """
    _report([Sweep(folder) for folder in sweep] or [newest(runs)], out)


def newest(runs: Path) -> Sweep:
    """Returns the sweep that was made last. Raises: RunError when there is none."""
    found = sweeps(runs)
    if not found:
        raise RunError(f"no sweep in {runs}/", "skinjob submit")
    return found[-1]


def _report(chosen: Sequence[Sweep], out: Path | None) -> None:
    from skinjob.report.build import build_report

    built = build_report(chosen, out)
    print_table(built.columns, built.rows)
    for title, lines in (("missing", built.missing), ("", built.notes)):
        if lines:
            click.echo()
        for line in lines:
            click.echo(f"{title}: {line}" if title else line)
    folder = _shown(built.folder)
    click.echo(f"\nopen: {folder / 'index.html'}\n      {folder / 'comparison.png'}")


def _shown(path: Path) -> Path:
    """Returns the path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@cli.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Folder to make it all in.",
)
def demo(folder: Path) -> None:
    """Run the whole job on this machine, on generated images: fetch, submit, train, report.

    \b
    Example:
      skinjob demo
    """
    from skinjob.demo import make_images
    from skinjob.submit.plan import make_plan

    data, weights = folder / "skin_cancer", folder / "weights" / "resnet18.safetensors"
    make_images(data, num_train=DEMO_TRAIN, num_test=DEMO_TEST)
    click.echo(f"images in {data}: generated drawings, not real lesions")
    _demo_weights(weights)
    plan = make_plan(
        train=TrainConfig(data=str(data), weights=str(weights), batch_size=32, epochs=DEMO_EPOCHS),
        batch_sizes=(32, 64, 128, 256),
        lrs=(DEMO_LR,),
        seeds=(0,),
        cluster=ClusterConfig(cluster="local"),
        runs=folder / "runs",
    )
    _print_plan(plan)
    _submit(plan, is_waiting=True)
    click.echo()
    _report([plan.sweep], None)


def _demo_weights(file: Path) -> None:
    """Fetches the weights, or, where the internet does not answer, makes untrained ones."""
    from skinjob.fetch.weights import fetch_weights, write_untrained

    try:
        fetched = fetch_weights(file.parent)
        click.echo(f"weights in {fetched.path}: {fetched.source}")
    except WeightsError as fault:
        click.echo(f"weights could not be fetched: {fault.message}", err=True)
        click.echo(
            "\n*** UNTRAINED BACKBONE: the demo goes on with random numbers for weights. ***"
            "\n*** Its accuracies say nothing, neither of skin nor of ResNet18.           ***\n"
        )
        write_untrained(file)
