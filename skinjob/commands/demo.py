"""The whole job on this machine: `skinjob demo`."""

from __future__ import annotations

import errno
import socket
import tempfile
import time
from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.report import report_on
from skinjob.commands.submit import print_plan, submit_and_tell
from skinjob.config import ClusterConfig, TrainConfig, grid
from skinjob.console import say
from skinjob.errors import DownloadError, SkinjobError, WeightsError

DEMO_TRAIN, DEMO_TEST = 160, 100  # images of each class
DEMO_BATCH_SIZES, DEMO_SEEDS = (32, 64, 128, 256), (0, 1, 2)
DEMO_EPOCHS, DEMO_LR = 15, 0.05


@click.command(cls=TaskCommand)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Folder to make it all in.",
)
def demo(folder: Path) -> None:
    """Do the whole job here, on drawn images, in minutes.

    It fetches, submits, trains and reports, and needs no SLURM and no GPU. Without internet it
    pretrains a backbone of its own, in a minute.

    \b
    Example:
      skinjob demo
    """
    from skinjob.data.lesions import make_images
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
    submit_and_tell(plan, is_waiting=True)
    say()
    report_on([plan.sweep], None)


def _require_writable(folder: Path) -> None:
    """Makes *folder* if need be; raises WeightsError where no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WeightsError(
            f"{folder}: cannot write there: {error.strerror}",
            "skinjob demo --folder FOLDER   # one that you may write to",
        ) from error


def _demo_weights(file: Path) -> None:
    """Fetches the weights, or pretrains some here where they cannot be fetched."""
    from skinjob.weights.backbones import DEFAULT
    from skinjob.weights.fetch import fetch_weights
    from skinjob.weights.file import find_weights

    try:
        weights, _ = fetch_weights(file.parent)
        say(f"weights in {weights.path}: {weights.source}")
    except (DownloadError, WeightsError) as error:
        say(f"weights could not be fetched: {error.message}", is_error=True)
        reason = "no internet: " if _is_offline(error) else ""
        if (made := find_weights(file, "demo")) and made.listed:
            say(f"{reason}using the {DEFAULT.title} that an earlier demo pretrained here")
            return
        from skinjob.train.pretrain import pretrain

        say(f"pretraining a {DEFAULT.title} here instead, on drawn shapes; it takes about a minute")
        start = time.monotonic()
        pretrain(file)
        say(
            f"{reason}pretrained {DEFAULT.title} here for {time.monotonic() - start:.0f} s on "
            "drawn shapes (the published weights are better)"
        )


def _is_offline(error: SkinjobError) -> bool:
    """Returns whether the name look-up or the connection failed, so that no server answered."""
    reason = getattr(error.__cause__, "reason", None)  # of an URLError
    return isinstance(reason, (socket.gaierror, ConnectionError, TimeoutError)) or (
        isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )
