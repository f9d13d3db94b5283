"""Compares a sweep of batch sizes with the loops one would write, and with the hardware's limit.

    plain/sweep    how many times as long a tutorial's loop takes
    expert/sweep   how many times as long a loop takes that knows the backbone to be frozen
    sweep/raw      how many times as long as the bare forward passes the sweep takes

The sweep is `skinjob submit --wait` as a whole process. The other loops are EXTRAPOLATED: one
epoch of each batch size is measured, on some of the images, and its seconds an image are taken
for all epochs and images; imports, and the start of workers that stay, are not counted. Raw is
every training image once an epoch and every test image once, at the best rate of bare forward
passes, which is measured before the first sweep and after each.

Example:
  python tests/benchmarks/sweep.py --epochs 5 --num-train 512 --num-test 128
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from common import (
    BATCH_SIZES,
    Inputs,
    Result,
    in_turns,
    inputs,
    link_images,
    numbers,
    parser,
    ratio,
    report,
    spread,
    submit_s,
)
from raw import Setting, forward_rates
from rivals import expert, plain

RIVALS = {"plain": plain, "expert": expert}


def main() -> None:
    """Measures in turns and prints the ratios."""
    options = command_line()
    with inputs(options) as given:
        rates = [raw_rates(given, options)]
        actions = {"sweep": lambda: sweep_s(given, options, rates)} | {
            name: lambda name=name: rival_s(name, given, options) for name in RIVALS
        }
        seconds = in_turns(actions, options.n)
        raw_s = limit_s(given, options.epochs, rates)
        report(results(given, seconds, rates, raw_s), options.json)


def results(
    given: Inputs,
    seconds: dict[str, list[float]],
    rates: list[dict[Setting, float]],
    raw_s: float,
) -> list[Result]:
    """Returns the seconds of the sweep, the rate of raw, and the ratios."""
    sweep = seconds["sweep"]
    return [
        spread("sweep", sweep, unit="s", notes=given.words),
        spread("raw forward", [max(r.values()) for r in rates], "images/s", best(rates)),
        *(ratio(f"{name}/sweep", seconds[name], sweep, "extrapolated") for name in RIVALS),
        ratio("sweep/raw", sweep, [raw_s] * len(sweep), f"raw: {raw_s:.1f} s at the best rate"),
    ]


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = parser(__doc__, num_train=512, num_test=128, n=1)
    arguments.add_argument("--batch-sizes", default=BATCH_SIZES, help="[default: %(default)s]")
    arguments.add_argument("--epochs", type=int, default=5, help="[default: %(default)s]")
    arguments.add_argument("--precision", default="auto", help="[default: %(default)s]")
    arguments.add_argument(
        "--rival-images",
        type=int,
        default=128,
        help="images on which the other loops are measured, at least two batches "
        "[default: %(default)s]",
    )
    arguments.add_argument(
        "--raw-s", type=float, default=3, help="seconds a setting of raw [default: %(default)s]"
    )
    return arguments.parse_args()


def raw_rates(given: Inputs, options: argparse.Namespace) -> dict[Setting, float]:
    """Returns the rate of bare forward passes by setting, and prints it."""
    rates = forward_rates(given.weights, options.precision, options.raw_s)
    for setting, rate in rates.items():
        print(f"raw: {rate:6.1f} images/s, {setting}", flush=True)
    return rates


def sweep_s(given: Inputs, options: argparse.Namespace, rates: list[dict[Setting, float]]) -> float:
    """Returns the seconds of a whole sweep; adds the raw rates right after it to *rates*."""
    with TemporaryDirectory(dir=given.folder) as runs:
        seconds = submit_s(
            given,
            Path(runs),
            batch_sizes=options.batch_sizes,
            epochs=options.epochs,
            precision=options.precision,
        )
    rates.append(raw_rates(given, options))
    return seconds


def rival_s(name: str, given: Inputs, options: argparse.Namespace) -> float:
    """Returns the seconds that a rival would take for all that the sweep does."""
    num_train, num_test = given.count("train"), given.count("test")
    return sum(
        options.epochs * epoch_s(name, given, batch_size, num_train, num_test, options.rival_images)
        for batch_size in numbers(options.batch_sizes)
    )


def epoch_s(
    name: str, given: Inputs, batch_size: int, num_train: int, num_test: int, num_images: int
) -> float:
    """Returns the seconds of a rival's epoch over so many images, from one over fewer of them."""
    measured = max(num_images, 2 * batch_size)  # one batch could not be decoded beside another
    with TemporaryDirectory(dir=given.folder) as folder:
        data = Path(folder)
        link_images(given.data, data, {"train": measured, "test": measured})
        epoch = next(RIVALS[name](data, given.weights, batch_size))
    print(
        f"{name}, batch size {batch_size}: {epoch.num_train / epoch.train_s:.1f} train and "
        f"{epoch.num_test / epoch.test_s:.1f} test images/s, on {epoch.num_train} and "
        f"{epoch.num_test}",
        flush=True,
    )
    return epoch.seconds_for(num_train, num_test)


def limit_s(given: Inputs, epochs: int, rates: list[dict[Setting, float]]) -> float:
    """Returns the least seconds in which the forward passes of a sweep can be done here."""
    passes = epochs * given.count("train") + given.count("test")
    return passes / max(max(measured.values()) for measured in rates)


def best(rates: list[dict[Setting, float]]) -> str:
    """Returns the fastest setting of all, in words."""
    rate, setting = max(
        ((rate, setting) for measured in rates for setting, rate in measured.items()),
        key=lambda pair: pair[0],
    )
    return f"at best {rate:.1f}: {setting}"


if __name__ == "__main__":
    main()
