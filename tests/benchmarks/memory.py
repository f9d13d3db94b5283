"""Tells how the peak memory of submitting and of training grows with the number of images.

Nine of ten images are for training, one for the test. They are small files, a few hundred
different ones under as many names as are wanted. THE BACKBONE IS REPLACED by a mean over the
pixels and a fixed matrix, since ResNet18 would take half an hour for 100,000 images; scan, plan,
decoding, augmentation, training and writing are the real ones. Each peak is the resident memory
of a process of its own, or of its greatest child (Linux alone tells it).

Example:
  python tests/benchmarks/memory.py --images 1000,10000
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import Result, bare_parser, hardware, numbers, ratio, report, spread
from PIL import Image
from untrained import write_untrained

from skinjob.data.lesions import CLASSES

NUM_DIFFERENT = 400
SIDE = 32  # pixels
SWEEP = "sweep"
STEPS = ("submit", "train")

Peaks = dict[str, dict[int, list[float]]]
"""Peak MB of every turn, by step and number of images."""


def main() -> None:
    """Measures every number of images in turns, and prints peaks and ratios."""
    options = command_line()
    print(f"on {hardware()}\nthe backbone is replaced by a cheap one; all else is real", flush=True)
    counts = numbers(options.images)
    peaks: Peaks = {step: {count: [] for count in counts} for step in STEPS}
    with TemporaryDirectory(prefix="skinjob-bench-") as name:
        folder = Path(name)
        weights = folder / "weights" / "resnet18.safetensors"
        write_untrained(weights)
        for count in counts:
            make_tree(folder / str(count), count)
        for turn, count in itertools.product(range(options.n), counts):
            with TemporaryDirectory(dir=folder) as runs:
                for step, mb in measure(folder / str(count), weights, Path(runs), options).items():
                    peaks[step][count].append(mb)
                    print(f"turn {turn + 1}: {step}, {count} images: {mb:.0f} MB", flush=True)
    report(results(peaks, counts), options.json)


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = bare_parser(__doc__, n=1)
    arguments.add_argument(
        "--images", default="1000,10000,100000", help="how many [default: %(default)s]"
    )
    arguments.add_argument("--batch-size", type=int, default=256, help="[default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=1, help="[default: %(default)s]")
    return arguments.parse_args()


def make_tree(root: Path, num_images: int) -> None:
    """Makes an image tree in which many names stand for a few hundred different files."""
    draws = np.random.default_rng(0)
    store = root.with_name(f"{root.name}-files")
    store.mkdir(parents=True)
    for number in range(NUM_DIFFERENT):
        pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(store / f"{number}.jpg")
    for split, label in itertools.product(("train", "test"), CLASSES):
        (root / split / label).mkdir(parents=True)
    for number in range(num_images):
        split = "test" if number % 10 == 0 else "train"
        label = CLASSES[number // 10 % 2]
        os.link(store / f"{number % NUM_DIFFERENT}.jpg", root / split / label / f"{number:06d}.jpg")


def measure(data: Path, weights: Path, runs: Path, options: argparse.Namespace) -> dict[str, float]:
    """Returns the peak MB of making a sweep of one run, and of training it."""
    recipe = {"batch_size": options.batch_size, "epochs": options.epochs}
    return {
        "submit": peak_mb(make_sweep, data, weights, runs, recipe),
        "train": peak_mb(train, runs / SWEEP),
    }


def results(peaks: Peaks, counts: list[int]) -> list[Result]:
    """Returns the peaks, and how much greater each is than that of the number before."""
    found = []
    for step, by_count in peaks.items():
        found += [spread(f"{step}, {count} images", by_count[count], "MB") for count in counts]
        found += [
            ratio(f"{step}, {more}/{fewer} images", by_count[more], by_count[fewer])
            for fewer, more in itertools.pairwise(counts)
        ]
    return found


# In a process of its own ---------------------------------------------------------------------


def peak_mb(step: Callable[..., None], *arguments: Any) -> float:
    """Returns the peak resident memory, MB, of a new process that does *step* and nothing else."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(_measured, step, *arguments).result()


def _measured(step: Callable[..., None], *arguments: Any) -> float:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        step(*arguments)
    # Not RUSAGE_SELF: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own_kb = int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    return max(own_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1e3


def make_sweep(data: Path, weights: Path, runs: Path, recipe: dict[str, int]) -> None:
    """Makes a checked sweep of one run, as `skinjob submit` does before it queues anything."""
    from skinjob.config import ClusterConfig, TrainConfig
    from skinjob.submit.folders import write_plan
    from skinjob.submit.plan import make_plan

    config = TrainConfig(
        data=str(data), weights=str(weights), device="cpu", precision="fp32", **recipe
    )
    plan = make_plan(
        configs=[config],
        cluster=ClusterConfig(cluster="local"),
        runs=runs,
        name=SWEEP,
    )
    write_plan(plan)


def train(sweep: Path) -> None:
    """Trains the sweep's run as its job would, with a cheap backbone."""
    from skinjob.sweeps.layout import Sweep
    from skinjob.train.job import run_job

    replace_backbone()
    run_job([run.folder for run in Sweep(sweep).runs()])


def replace_backbone() -> None:
    """Makes jobs of this process use the cheap backbone, in the place where ResNet18 is built."""
    from skinjob.train import job

    if not hasattr(job, "build_backbone"):
        raise SystemExit("build_backbone has moved: replace_backbone() in this file must follow")
    job.build_backbone = cheap_backbone


def cheap_backbone(backbone: Any, weights: Path) -> Any:
    """Returns a net as frozen ResNet18 is one, (N, 3, 224, 224) -> (N, 512), that costs nothing."""
    import torch
    from torch import nn

    projection = nn.Linear(3, 512)
    with torch.no_grad():
        projection.weight.copy_(torch.linspace(-1, 1, 3 * 512).view(512, 3))
        projection.bias.zero_()
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), projection)
    return backbone.requires_grad_(False).eval()


if __name__ == "__main__":
    main()
