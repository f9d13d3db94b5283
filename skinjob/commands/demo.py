"""`skinjob demo`: every step on this machine."""

from __future__ import annotations

import errno
import socket
import tempfile
import time
from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.report import print_report
from skinjob.commands.submit import print_plan, submit_and_print
from skinjob.config import ClusterConfig, TrainConfig, grid
from skinjob.console import say
from skinjob.errors import DownloadError, SkinjobError, WeightsError

DEMO_TRAIN, DEMO_TEST = 160, 100  # images per class
DEMO_BATCH_SIZES, DEMO_SEEDS = (32, 64, 128, 256), (0, 1, 2)
DEMO_EPOCHS, DEMO_LR = 15, 0.05


@click.command(cls=TaskCommand)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for everything that the demo makes.",
)
def demo(folder: Path) -> None:
    """Run every step on this machine in minutes, on drawn images.

    The demo fetches, submits, trains and reports. It needs no SLURM and no GPU. Without internet it
    pretrains a small backbone, which takes about a minute.

    \b
    Example:
      skinjob demo
    """
    from skinjob.data.lesions import make_images
    from skinjob.report.build import build_report
    from skinjob.submit.plan import make_plan
    from skinjob.weights.backbones import DEFAULT

    data, weights = folder / "skin_cancer", folder / "weights" / DEFAULT.file_name
    _require_writable(weights.parent)
    make_images(data, num_train=DEMO_TRAIN, num_test=DEMO_TEST)
    say(f"images in {data}: generated drawings, not real lesions")
    _demo_weights(weights)
    recipe = TrainConfig(
        data=str(data), weights=str(weights), batch_size=32, epochs=DEMO_EPOCHS, lr=DEMO_LR
    )
    plan = make_plan(
        configs=grid(recipe, batch_size=DEMO_BATCH_SIZES, seed=DEMO_SEEDS),
        cluster=ClusterConfig(cluster="local"),
        runs=folder / "runs",
    )
    print_plan(plan)
    submit_and_print(plan, is_waiting=True)
    say()
    print_report(build_report([plan.sweep]))


def _require_writable(folder: Path) -> None:
    """Makes *folder* if it is missing. Raises: WeightsError if no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WeightsError(
            f"{folder}: cannot write there: {error.strerror}",
            "skinjob demo --folder FOLDER   # a folder that you may write to",
        ) from error


def _demo_weights(file: Path) -> None:
    """Fetches the weights; if that fails, pretrains a backbone on this machine."""
    from skinjob.weights.backbones import DEFAULT
    from skinjob.weights.fetch import fetch_weights
    from skinjob.weights.file import find_weights

    try:
        weights, _ = fetch_weights(file.parent)
        say(f"weights in {weights.path}: {weights.source}")
    except (DownloadError, WeightsError) as error:
        say(f"weights could not be fetched: {error.message}", is_error=True)
        reason = "no internet: " if _is_offline(error) else ""
        if (earlier := find_weights(file, "demo")) and earlier.listed:
            say(f"{reason}using the {DEFAULT.title} that an earlier demo pretrained here")
            return
        from skinjob.train.pretrain import pretrain

        say(f"pretraining a {DEFAULT.title} on drawn shapes instead; this takes about a minute")
        start = time.monotonic()
        pretrain(file)
        seconds = f"{time.monotonic() - start:.0f} s"
        say(
            f"{reason}pretrained {DEFAULT.title} here for {seconds} on drawn shapes "
            "(the published weights are better)"
        )


def _is_offline(error: SkinjobError) -> bool:
    """Returns whether no server answered: the name look-up or the connection failed."""
    reason = getattr(error.__cause__, "reason", None)  # of a URLError
    return isinstance(reason, (socket.gaierror, ConnectionError, TimeoutError)) or (
        isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )
