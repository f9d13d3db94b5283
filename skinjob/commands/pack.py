"""`skinjob pack-images` and `skinjob pack`: what travels between the machines, in one file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skinjob.commands.arguments import find_sweep, runs_option, sweep_argument
from skinjob.commands.help import TaskCommand
from skinjob.commands.transfer import LOGIN, print_transfer
from skinjob.console import say
from skinjob.errors import ImagesError, RunError
from skinjob.files import absolute, sha256_file
from skinjob.sweeps.records import Status
from skinjob.words import list_first, pluralize

if TYPE_CHECKING:
    from skinjob.status.status import RunStatus

FILE = click.Path(path_type=Path)


@click.command(cls=TaskCommand)
@click.argument("data", type=FILE)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="images.zip",
    show_default=True,
    help="Zip to write.",
)
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be used.")
def pack_images(data: Path, out: Path, skip_bad_images: bool) -> None:
    """Pack a folder of images into one zip, for --data.

    It is read in place. One file is copied much faster than thousands, and is easier on the
    cluster's file system. Checks every image. Equal images give an equal zip.

    \b
    Example:
      skinjob pack-images skin_cancer
    """
    from skinjob.data.pack import pack_images as pack
    from skinjob.data.scan import scan
    from skinjob.data.store import quoted

    try:
        images = scan(data, skips_bad=skip_bad_images)
    except ImagesError as error:
        command = f"skinjob pack-images {quoted(data)}"
        error.fix = error.fix.replace("skinjob submit --data", "skinjob pack-images")
        error.fix = error.fix.replace("skinjob submit --skip", f"{command} --skip")
        raise
    pack(images, out)
    say(f"zip     {out}, {pluralize(len(images.files), 'image')}", f"sha256  {sha256_file(out)}")
    if images.skipped:
        say(f"skipped {pluralize(len(images.skipped), 'faulty image')}")
    say("")
    print_transfer([out], "skinjob/", out.stat().st_size)
    say("", f"then on the login node: skinjob submit --data {shlex.quote(out.name)}")


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="SWEEP.tar",
    help="Tar to write.",
)
@click.option("--unfinished", is_flag=True, help="Pack it although runs are waiting or running.")
def pack(sweep: str | None, runs: Path, out: Path | None, unfinished: bool) -> None:
    """Pack the results of a sweep into one tar, for another machine.

    It has tables, predictions, trained layers, logs and the report; no checkpoints, and nothing of
    submission/. `skinjob report` and `predict` read it. It is a BagIt bag, so `sha256sum -c` checks
    it anywhere. Equal results give an equal tar.

    \b
    Example:
      skinjob pack
      skinjob pack runs/my-sweep --out results.tar
    """
    from skinjob.status.status import run_statuses
    from skinjob.sweeps.pack import pack_sweep
    from skinjob.train.claims import is_claimed

    if out and out.suffix != ".tar":
        raise click.BadParameter(f"{out}: its name must end in .tar", param_hint="'--out'")
    chosen = find_sweep(sweep, runs)
    statuses = run_statuses(chosen)
    missing = [run for run in statuses if run.status != Status.DONE]
    active = [run for run in missing if not run.status.is_final]
    if active and not unfinished:
        num, names = pluralize(len(statuses), "run"), list_first(list(map(_progress, active)))
        raise RunError(
            f"{len(active)} of {num} not over yet: {names}",
            f"{chosen.command('pack', '--unfinished')}   # or wait: {chosen.command('status')}",
        )
    is_computing = is_claimed(chosen.converged_file)  # a job claims it before its runs are done
    if is_computing and not unfinished:
        raise RunError(
            "a job is computing the converged head",
            f"sleep 60; {chosen.command('pack')}   # or without it: --unfinished",
        )
    file = out or Path(f"{chosen.name}.tar")
    num_files = pack_sweep(chosen, file)
    if missing:
        say(*(f"missing: {_progress(run)}" for run in missing))
    if is_computing:
        say("missing: the converged head, which a job is computing")
    if not chosen.report_folder.is_dir():
        say(f"note    no report in it; {chosen.command('report')}")
    say(f"pack    {file}, {pluralize(num_files, 'file')}", f"sha256  {sha256_file(file)}")
    size_mb, path = file.stat().st_size / 1e6, shlex.quote(str(absolute(file)))
    say("", f"fetch it ({size_mb:,.1f} MB) from the laptop in one of these ways:")
    say(f"  rsync -t --partial {LOGIN}:{path} .   # call it again: it resumes")
    say(f"  scp {LOGIN}:{path} .   # cannot resume")
    say("", f"then there: skinjob report {shlex.quote(file.name)}")


def _progress(run: RunStatus) -> str:
    return f"{run.run} is {run.status}, {run.progress_words}"
