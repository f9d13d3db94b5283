"""Tells how many images/s are decoded, and made inputs of the network, by threads and processes.

The pixels of a CPU come from the decoded images on the disk, as in a job, without the network. The
pixels of a GPU are made on the CPU here, in batches, unless there is a GPU.

Example:
  python tests/benchmarks/pixels.py --data FOLDER --n 3
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import torch
from common import hardware, in_turns, inputs, num_cores, numbers, parser, report, spread

from skinjob.data.images import ImageSet, Split
from skinjob.data.scan import scan
from skinjob.train import decoded
from skinjob.train.images import ImageSource, View
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing


def main() -> None:
    """Measures every way in turns and prints images/s."""
    options = command_line()
    print(f"on {hardware()}", flush=True)
    with inputs(options) as given:
        images, folder = scan(given.data), given.folder / "decoded"
        source = ImageSource(images, 0, folder, PREPROCESSING)
        source.prepare(Split.TRAIN)
        epochs = count(1)
        actions: dict[str, Callable[[], float]] = {}
        for number in numbers(options.threads):
            actions[f"decode, {number} threads"] = lambda number=number: by_threads(images, number)
            actions[f"decode, a job with {number} cores"] = lambda number=number: by_a_job(
                images, given.folder / "again", number
            )
            actions[f"inputs, {number} threads"] = lambda number=number: made(
                images, source, number, next(epochs)
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        actions[f"inputs of a GPU, made on {device}"] = lambda: made_at_once(
            images, source, next(epochs), device
        )
        rates = in_turns(actions, options.n)
    report(
        [spread(name, values, "images/s", given.words) for name, values in rates.items()],
        options.json,
    )


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = parser(__doc__, num_train=512, num_test=2, n=3)
    default = ",".join(str(n) for n in (1, 2, 4, 8, 16) if n <= num_cores())
    arguments.add_argument("--threads", default=default, help="[default: %(default)s]")
    return arguments.parse_args()


def by_threads(images: ImageSet, number: int) -> float:
    """Returns the images/s of threads that read, check, decode and scale training images."""
    files, start = images.split(Split.TRAIN), time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(lambda file: decoded.decode(file, images.store, PREPROCESSING.crop), files))
    return len(files) / (time.perf_counter() - start)


def by_a_job(images: ImageSet, folder: Path, number: int) -> float:
    """Returns the images/s of a job that finds no decoded images, and starts processes for them."""
    start = time.perf_counter()
    found = decoded.DecodedImages(images, Split.TRAIN, folder, PREPROCESSING.crop, number)
    found.prepare()
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return len(found.files) / seconds


def made(images: ImageSet, source: ImageSource, number: int, epoch: int) -> float:
    """Returns the images/s of threads that make the inputs of a view, in batches of 8."""
    num_images, view = len(images.split(Split.TRAIN)), View(Split.TRAIN, epoch)
    parts = [range(first, min(first + 8, num_images)) for first in range(0, num_images, 8)]
    start = time.perf_counter()
    with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in pool.map(lambda part: source.batch(view, part), parts):
            del batch
    return num_images / (time.perf_counter() - start)


def made_at_once(images: ImageSet, source: ImageSource, epoch: int, device: str) -> float:
    """Returns the images/s of a device that makes the inputs of a view in large batches."""
    num_images = len(images.split(Split.TRAIN))
    parts, start = torch.arange(num_images).split(1024), time.perf_counter()
    for batch in source.batches(View(Split.TRAIN, epoch), parts, device):
        del batch
    if device == "cuda":
        torch.cuda.synchronize()
    return num_images / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
