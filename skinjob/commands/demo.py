"""The whole job on this machine: `skinjob demo`."""

from __future__ import annotations

from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.report import report_on
from skinjob.commands.submit import print_plan, submit_and_tell
from skinjob.config import ClusterConfig, TrainConfig
from skinjob.console import say
from skinjob.errors import WeightsError

# Images are per class. At the recipe's lr of 0.01 a head barely moves in so few updates.
DEMO_TRAIN, DEMO_TEST, DEMO_EPOCHS, DEMO_LR = 160, 40, 10, 0.1


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

    It fetches, submits, trains and reports, and needs no SLURM and no GPU.

    \b
    Example:
      skinjob demo
    """
    from skinjob.demo import make_images
    from skinjob.submit.plan import grid, make_plan

    data, weights = folder / "skin_cancer", folder / "weights" / "resnet18.safetensors"
    make_images(data, num_train=DEMO_TRAIN, num_test=DEMO_TEST)
    say(f"images in {data}: generated drawings, not real lesions")
    _demo_weights(weights)
    recipe = TrainConfig(
        data=str(data), weights=str(weights), batch_size=32, epochs=DEMO_EPOCHS, lr=DEMO_LR
    )
    plan = make_plan(
        configs=grid(recipe, (32, 64, 128, 256), (DEMO_LR,), (0,)),
        cluster=ClusterConfig(cluster="local"),
        runs=folder / "runs",
    )
    print_plan(plan)
    submit_and_tell(plan, is_waiting=True)
    say()
    report_on([plan.sweep], None)


def _demo_weights(file: Path) -> None:
    """Fetches the weights, or, where the internet does not answer, makes untrained ones."""
    from skinjob.fetch.weights import fetch_weights, write_untrained

    try:
        fetched = fetch_weights(file.parent)
        say(f"weights in {fetched.path}: {fetched.source}")
    except WeightsError as fault:
        say(f"weights could not be fetched: {fault.message}", is_error=True)
        say(
            "",
            "*** UNTRAINED BACKBONE: the demo goes on with random numbers for weights. ***",
            "*** Its accuracies say nothing, neither of skin nor of ResNet18.           ***",
            "",
        )
        write_untrained(file)
