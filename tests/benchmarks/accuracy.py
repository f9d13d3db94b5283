"""Compares the test accuracies of the fast path with those of plain fp32, batch size by batch size.

The same sweep, with the same seeds, crops and flips, is trained as it is, in each --precision, and
once more WITH PARTS REPLACED by what they stand for: torchvision's ResNet18 in fp32 with its batch
norm, neither folded nor fused, and Pillow's scaling of crops. The difference is given in percentage
points, with the least and the greatest of the seeds.

Example:
  python tests/benchmarks/accuracy.py --data skin_cancer --weights weights/resnet18.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import (
    BATCH_SIZES,
    Inputs,
    Result,
    finished_runs,
    inputs,
    metrics,
    numbers,
    parser,
    report,
    submit_s,
)
from PIL import Image
from rivals import pretrained
from torch import nn

Accuracies = dict[int, list[float]]
"""The last epoch's test accuracy of every seed, by batch size."""


def main() -> None:
    """Trains both and prints the differences."""
    options = command_line()
    with inputs(options) as given:
        fast = [
            trained(given, options, submit_s, precision)
            for precision in options.precision.split(",")
        ]
        _, plain = trained(given, options, train_plainly, "fp32")
    differences = [
        difference(size, name, accuracies[size], plain[size])
        for name, accuracies in fast
        for size in numbers(options.batch_sizes)
    ]
    report(differences, options.json)


def command_line() -> argparse.Namespace:
    """Returns the options."""
    # No turns: the same sweep gives the same accuracies each time.
    arguments = parser(__doc__, num_train=512, num_test=128, n=None)
    arguments.add_argument("--batch-sizes", default=BATCH_SIZES, help="[default: %(default)s]")
    arguments.add_argument("--seeds", default="0-4", help="[default: %(default)s]")
    arguments.add_argument("--lr", default="0.01", help="[default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=5, help="[default: %(default)s]")
    arguments.add_argument(
        "--precision",
        default="auto",
        help="of the fast path, one or more, such as bf16,fp16 [default: %(default)s]",
    )
    return arguments.parse_args()


def trained(
    given: Inputs, options: argparse.Namespace, train: Callable[..., object], precision: str
) -> tuple[str, Accuracies]:
    """Returns the precision that a sweep was trained in, and its accuracies."""
    with TemporaryDirectory(dir=given.folder) as folder:
        train(
            given,
            Path(folder),
            batch_sizes=options.batch_sizes,
            lr=options.lr,
            seeds=options.seeds,
            epochs=options.epochs,
            precision=precision,
        )
        found: Accuracies = defaultdict(list)
        for run in finished_runs(Path(folder)):
            last = metrics(run)[-1]
            found[int(last["batch_size"])].append(float(last["test_accuracy"]))
            used = run.state().precision or precision
    print(f"trained in {used} (asked for: {precision})", flush=True)
    return used, found


def train_plainly(given: Inputs, runs: Path, **options: Any) -> None:
    """Trains such a sweep in a process in which the fast parts are replaced by plain ones."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        pool.submit(_train_plainly, given, runs, options).result()


def _train_plainly(given: Inputs, runs: Path, options: dict[str, Any]) -> None:
    from skinjob.sweeps.layout import sweeps
    from skinjob.train import job, transforms

    job.build_backbone = unfolded_backbone
    transforms._scaled_each = scaled_by_pillow
    dry = {"data": given.data, "weights": given.weights, "runs": runs} | options
    make_sweep(**dry)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        job.run_job([run.folder for sweep in sweeps(runs) for run in sweep.runs()])


def make_sweep(**options: Any) -> None:
    """Makes a checked sweep, as `skinjob submit` does before it queues anything."""
    from skinjob.commands.options import IntegerList, NumberList
    from skinjob.config import ClusterConfig, TrainConfig, grid
    from skinjob.submit.folders import write_plan
    from skinjob.submit.plan import make_plan

    config = TrainConfig(
        data=str(options["data"]),
        weights=str(options["weights"]),
        batch_size=1,
        epochs=options["epochs"],
        device="cpu",
        precision=options["precision"],
    )
    plan = make_plan(
        configs=grid(
            config,
            batch_size=IntegerList().convert(options["batch_sizes"], None, None),
            lr=NumberList().convert(options["lr"], None, None),
            seed=IntegerList().convert(options["seeds"], None, None),
        ),
        cluster=ClusterConfig(cluster="local"),
        runs=options["runs"],
    )
    write_plan(plan)


def unfolded_backbone(_: Any, weights: Path) -> Any:
    """Returns ResNet18 without its last layer, as torchvision has it."""
    backbone = pretrained(weights).eval().requires_grad_(False)
    backbone.fc = nn.Identity()
    return backbone


def scaled_by_pillow(crops: Sequence[Any], *_: Any) -> torch.Tensor:
    """Returns (B, 3, 224, 224) uint8, each crop scaled as torchvision scales a PIL image."""
    images = []
    for crop in crops:
        image = Image.fromarray(crop.pixels.numpy()).resize((224, 224), Image.Resampling.BILINEAR)
        if crop.is_flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        images.append(torch.from_numpy(np.array(image)))
    return torch.stack(images).permute(0, 3, 1, 2)


def difference(batch_size: int, fast_name: str, fast: list[float], plain: list[float]) -> Result:
    """Returns the mean difference of a batch size's accuracies, seed against the same seed."""
    points = [100 * (a - b) for a, b in zip(fast, plain, strict=True)]
    means = (
        f"fast {fast_name} {100 * statistics.mean(fast):.2f} %, "
        f"plain fp32 {100 * statistics.mean(plain):.2f} %"
    )
    return Result(
        name=f"{fast_name}, batch size {batch_size}",
        ratio=statistics.mean(points),
        low=min(points),
        high=max(points),
        n=len(points),
        unit="percentage points",
        notes=means,
    )


if __name__ == "__main__":
    main()
