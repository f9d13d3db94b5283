"""Compares sweeps of 1, 4 and 16 seeds: what do more heads cost on the same features?

Each is `skinjob submit --wait` as a whole process with a new --runs folder, so that nothing is
there before. With four batch sizes they are 4, 16 and 64 runs.

--own measures the heads alone, on one core: 128 heads for 20 epochs of 2,640 images, with their
metrics, in stacks of several sizes, extrapolated from an epoch of one stack.

Example:
  python tests/benchmarks/heads.py --epochs 5 --num-train 256 --num-test 64
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import (
    BATCH_SIZES,
    Inputs,
    Result,
    in_turns,
    inputs,
    numbers,
    parser,
    ratio,
    report,
    spread,
    submit_s,
)
from torch import Tensor

from skinjob.train.evaluation import train_scores
from skinjob.train.heads import Heads, new_state
from skinjob.train.loop import order
from skinjob.train.model import build_head


def main() -> None:
    """Measures the numbers of seeds in turns and prints the ratios to the first."""
    options = command_line()
    if options.own:
        report(list(own_times(options.n)), options.json)
        return
    seeds = numbers(options.seeds)
    with inputs(options) as given:
        actions = {
            f"{count} seeds": lambda count=count: sweep_s(given, options, count) for count in seeds
        }
        seconds = list(in_turns(actions, options.n).values())
    per_seed = len(numbers(options.batch_sizes))
    runs = [per_seed * count for count in seeds]
    report(
        [
            spread(f"{runs[0]} runs", seconds[0], unit="s", notes=given.words),
            *(
                ratio(f"{count} runs/{runs[0]} runs", measured, seconds[0])
                for count, measured in zip(runs[1:], seconds[1:], strict=True)
            ),
        ],
        options.json,
    )


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = parser(__doc__, num_train=256, num_test=64, n=2)
    arguments.add_argument("--batch-sizes", default=BATCH_SIZES, help="[default: %(default)s]")
    arguments.add_argument("--seeds", default="1,4,16", help="how many [default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=5, help="[default: %(default)s]")
    arguments.add_argument("--own", action="store_true", help="the heads alone")
    return arguments.parse_args()


def own_times(turns: int) -> Iterator[Result]:
    """Yields the seconds of 128 heads by batch size and by the size of a stack."""
    torch.set_num_threads(1)
    features, labels = torch.randn(2640, 512).abs(), torch.arange(2640) % 2
    for batch_size, size in itertools.product((32, 256), (1, 4, 32)):
        seconds = [own_s(features, labels, batch_size, size) for _ in range(turns + 1)][1:]
        yield spread(f"batch size {batch_size}, stacks of {size}", seconds, unit="s")


def own_s(features: Tensor, labels: Tensor, batch_size: int, size: int) -> float:
    """Returns the seconds of 128 heads for 20 epochs, from an epoch of a stack."""
    start = time.process_time()  # other processes do not count
    states = [new_state(build_head(512, 2, seed), 0.01) for seed in range(size)]
    stack = Heads(states, [0.01] * size)
    orders = torch.stack([order(len(labels), seed, 1) for seed in range(size)])
    logits = [
        stack.update(features.index_select(0, part.flatten()), labels[part], 1.0)
        for part in orders.split(batch_size, dim=1)
    ]
    stack.states()
    train_scores(torch.cat(logits, dim=1), labels[orders], 1)
    return (time.process_time() - start) * 20 * 128 / size


def sweep_s(given: Inputs, options: argparse.Namespace, num_seeds: int) -> float:
    """Returns the seconds of a sweep with so many seeds."""
    with TemporaryDirectory(dir=given.folder) as runs:
        return submit_s(
            given,
            Path(runs),
            batch_sizes=options.batch_sizes,
            epochs=options.epochs,
            seeds=f"0-{num_seeds - 1}",
        )


if __name__ == "__main__":
    main()
