"""Compares `skinjob submit --train all` with a plain fp32 loop over all layers, in images/s.

Both train every layer of ResNet18 with AdamW at a constant 0.0003, and test after every epoch. An
epoch's images/s are its training images over its seconds, the test's included; skinjob's are those
of its metrics.csv. The test accuracies show whether the two learn alike.

Example:
  python tests/benchmarks/finetune.py --epochs 3 --num-train 256 --num-test 64
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from common import (
    Inputs,
    finished_runs,
    in_turns,
    inputs,
    metrics,
    parser,
    ratio,
    report,
    spread,
    submit_s,
)
from rivals import OPTIMIZERS, plain


def main() -> None:
    """Measures both in turns and prints the ratio."""
    options = command_line()
    with inputs(options) as given:
        rates = in_turns(
            {
                "skinjob": lambda: skinjob_rate(given, options),
                "plain": lambda: plain_rate(given, options),
            },
            options.n,
        )
    report(
        [
            spread("skinjob --train all", rates["skinjob"], unit="images/s", notes=given.words),
            spread("plain fp32 loop", rates["plain"], unit="images/s"),
            ratio("skinjob/plain", rates["skinjob"], rates["plain"], "images/s, median of epochs"),
        ],
        options.json,
    )


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = parser(__doc__, num_train=256, num_test=64, n=1)
    arguments.add_argument("--batch-size", type=int, default=32, help="[default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=2, help="[default: %(default)s]")
    arguments.add_argument("--precision", default="auto", help="[default: %(default)s]")
    return arguments.parse_args()


def skinjob_rate(given: Inputs, options: argparse.Namespace) -> float:
    """Returns the median images/s of the epochs of a run of skinjob's that trains all layers."""
    with TemporaryDirectory(dir=given.folder) as folder:
        submit_s(
            given,
            Path(folder),
            train="all",
            batch_sizes=options.batch_size,
            epochs=options.epochs,
            lr=OPTIMIZERS["all"].keywords["lr"],
            schedule="constant",
            precision=options.precision,
        )
        (run,) = finished_runs(Path(folder))
        epochs = metrics(run)
    tell("skinjob", [float(epoch["test_accuracy"]) for epoch in epochs])
    return statistics.median(float(epoch["images_per_s"]) for epoch in epochs)


def plain_rate(given: Inputs, options: argparse.Namespace) -> float:
    """Returns the median images/s of the epochs of a plain loop over all layers."""
    loop = plain(given.data, given.weights, options.batch_size, trained="all")
    epochs = list(itertools.islice(loop, options.epochs))
    tell("plain", [epoch.test_accuracy for epoch in epochs])
    return statistics.median(e.num_train / (e.train_s + e.test_s) for e in epochs)


def tell(name: str, accuracies: list[float]) -> None:
    """Prints the test accuracy of every epoch."""
    shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
    print(f"{name}: test accuracy % by epoch: {shown}", flush=True)


if __name__ == "__main__":
    main()
