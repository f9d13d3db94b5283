"""Compares the test accuracies of the fast path with those of fp32, batch size by batch size.

The same sweep, with the same seeds, is trained with --precision and with fp32. The difference is
given in percentage points, with the least and the greatest of the seeds.

Example:
  python tests/benchmarks/accuracy.py --data skin_cancer --weights weights/resnet18.safetensors
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

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

Accuracies = dict[int, list[float]]
"""The last epoch's test accuracy of every seed, by batch size."""


def main() -> None:
    """Trains both and prints the differences."""
    options = command_line()
    with inputs(options) as given:
        fast_name, fast = trained(given, options, options.precision)
        slow_name, slow = trained(given, options, "fp32")
    if fast_name == slow_name:
        print(f"note: --precision {options.precision} is {fast_name} here, the same arithmetic")
    report(
        [
            difference(size, fast_name, fast[size], slow_name, slow[size])
            for size in numbers(options.batch_sizes)
        ],
        options.json,
    )


def command_line() -> argparse.Namespace:
    """Returns the options."""
    # No turns: the same sweep gives the same accuracies each time.
    arguments = parser(__doc__, num_train=512, num_test=128, n=None)
    arguments.add_argument("--batch-sizes", default=BATCH_SIZES, help="[default: %(default)s]")
    arguments.add_argument("--seeds", default="0-4", help="[default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=5, help="[default: %(default)s]")
    arguments.add_argument(
        "--precision", default="auto", help="the fast path [default: %(default)s]"
    )
    return arguments.parse_args()


def trained(given: Inputs, options: argparse.Namespace, precision: str) -> tuple[str, Accuracies]:
    """Returns the precision that a sweep was trained in, and its accuracies."""
    with TemporaryDirectory(dir=given.folder) as folder:
        submit_s(
            given,
            Path(folder),
            batch_sizes=options.batch_sizes,
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


def difference(
    batch_size: int, fast_name: str, fast: list[float], slow_name: str, slow: list[float]
) -> Result:
    """Returns the mean difference of a batch size's accuracies, seed against the same seed."""
    points = [100 * (a - b) for a, b in zip(fast, slow, strict=True)]
    means = (
        f"{fast_name} {100 * statistics.mean(fast):.2f} %, "
        f"{slow_name} {100 * statistics.mean(slow):.2f} %"
    )
    return Result(
        name=f"batch size {batch_size}",
        ratio=statistics.mean(points),
        low=min(points),
        high=max(points),
        n=len(points),
        unit="percentage points",
        notes=means,
    )


if __name__ == "__main__":
    main()
