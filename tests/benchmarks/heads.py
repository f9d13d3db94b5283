"""Compares sweeps of 1, 4 and 16 seeds: what do more heads cost on the same features?

Each is `skinjob submit --wait` as a whole process with a new --runs folder, so that nothing is
there before. With four batch sizes they are 4, 16 and 64 runs.

Example:
  python tests/benchmarks/heads.py --epochs 5 --num-train 256 --num-test 64
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from common import (
    BATCH_SIZES,
    Inputs,
    in_turns,
    inputs,
    numbers,
    parser,
    ratio,
    report,
    spread,
    submit_s,
)


def main() -> None:
    """Measures the numbers of seeds in turns and prints the ratios to the first."""
    options = command_line()
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
    return arguments.parse_args()


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
