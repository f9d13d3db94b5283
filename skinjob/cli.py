"""The command line: parse, call one function, print what happened, suggest the next command.

Heavy libraries are imported inside the commands that use them, so that `--help` is quick.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skinjob import __version__
from skinjob.config import DEFAULTS, ClusterConfig, TrainConfig
from skinjob.console import print_table
from skinjob.errors import RunError, SkinjobError, WeightsError
from skinjob.options import cluster_options, read_job, recipe_options
from skinjob.runs import Run, Sweep, sweeps

if TYPE_CHECKING:
    from skinjob.submit.plan import Plan
    from skinjob.submit.submit import Submission

# Images are per class. At the recipe's lr of 0.01 a head barely moves in so few updates.
DEMO_TRAIN, DEMO_TEST, DEMO_EPOCHS, DEMO_LR = 160, 40, 10, 0.1


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
        code = _tell(fault.format_message(), f"{command} --help", 2)
    except (click.Abort, KeyboardInterrupt):
        code = _tell("interrupted", "the same command again goes on where it stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(message: str, remedy: str, code: int) -> int:
    click.echo(f"error: {_in_one_line(message)}\nfix:   {_in_one_line(remedy)}", err=True)
    return code


def _in_one_line(text: str) -> str:
    """Returns a text that may quote a damaged file as one line that cannot steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


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
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of all sweeps.",
)
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
    print_table(
        ("run", "batch size", "lr", "seed", "updates", "state", "job"),
        [_row(plan, submission, name) for name in plan.configs],
    )
    folder = shlex.quote(str(submission.sweep.folder))
    if is_waiting:
        click.echo(f"\nwaiting; Ctrl-C leaves the jobs at work. Logs: tail -f {folder}/*/train.log")
        ok = wait(submission.sweep, tuple(plan.configs), _tell_end(submission.sweep))
        click.echo(f"\nnext: skinjob report {folder}")
        if not ok:
            raise RunError(
                f"not every run of {folder} is done", f"tail -n 40 {folder}/submission/*_log.out"
            )
        return
    click.echo(f"\nfollow: tail -f {folder}/*/train.log")
    click.echo(f"next:   skinjob report {folder}")


def _row(plan: Plan, submission: Submission, name: str) -> tuple[str, ...]:
    """Returns a run's line in the table that `submit` prints."""
    config = plan.configs[name]
    numbers = (config.batch_size, config.lr, config.seed, plan.num_updates(config))
    if name in submission.others:
        state = (submission.others[name], "not repeated")
    else:
        state = ("queued", submission.jobs.get(name, "this machine"))
    return (name, *map(str, numbers), *state)


def _tell_end(sweep: Sweep) -> Callable[[str, str], None]:
    def tell(name: str, stands: str) -> None:
        state = Run(sweep.folder / name).state()
        click.echo(f"{name} {stands}{': ' + state.error if state.error else ''}")

    return tell


@cli.command()
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
def train(run: tuple[Path, ...]) -> None:
    """Train submitted runs of one sweep here and now, as their job would.

    \b
    Example:
      skinjob train runs/my-sweep/bs0032-lr0.01-seed0
    """
    from skinjob.train.job import run_job

    run_job(run)


@cli.command()
@click.argument("sweep", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of all sweeps.",
)
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
