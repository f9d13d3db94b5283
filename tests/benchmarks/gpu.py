"""What a GPU can do, and what skinjob makes of it; four minutes on a GPU, no download.

  limits    bare forward passes, and bare updates of all layers, on random images
  views     images/s of the views of a sweep, against the bare forward passes
  all       images/s of the epochs of --train all, against bare updates and a plain loop
  sweep     seconds of a whole `skinjob submit --wait`, and the same on 4 cores
  equal     1 if two sweeps, or a run that was killed and continued, are equal byte by byte
  accuracy  percentage points between precisions, mean of the seeds

The weights are random and the images are drawn, so accuracies say how alike the precisions are, and
nothing about skin. --device cpu --small tries the benchmark itself, in a minute.

Example:
  python tests/benchmarks/gpu.py --device cpu --small
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from common import (
    Inputs,
    Result,
    environment,
    finished_runs,
    inputs,
    metrics,
    num_cores,
    parser,
    ratio,
    report,
    spread,
    submit_s,
)
from rivals import TEST, TRAIN, num_classes, pretrained
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from skinjob.config import TrainConfig
from skinjob.sweeps.layout import Run
from skinjob.train.all_layers import AllLayers
from skinjob.train.device import choose_device
from skinjob.train.forward import choose_forward
from skinjob.train.model import build_backbone
from skinjob.weights.backbones import DEFAULT

SIDE = DEFAULT.preprocessing.crop
CLOCKS = re.compile(r"^(sweep|seconds|images_per_s|time_utc)$")


def main() -> None:
    """Measures everything once and prints a table."""
    options = command_line()
    with inputs(options) as given:
        report(list(measured(given, options)), options.json)


def command_line() -> argparse.Namespace:
    """Returns the options, small where --small asks for it."""
    arguments = parser(__doc__, num_train=2640, num_test=660, n=None)
    arguments.add_argument("--device", default="cuda", help="[default: %(default)s]")
    arguments.add_argument("--small", action="store_true", help="few images, epochs and runs")
    options = arguments.parse_args()
    options.batch_sizes, options.all_sizes, options.seeds = "32,64,128,256", "32,256", "0-4"
    options.epochs, options.all_epochs, options.seconds = 20, 6, 1.0
    options.forward_sizes = (256, 512, 1024)
    if options.small:
        options.generated = {"train": 16, "test": 8}
        options.batch_sizes, options.all_sizes, options.seeds = "4,8", "4", "0"
        options.epochs, options.all_epochs, options.seconds = 3, 2, 0.1
        options.forward_sizes = (4,)
    return options


def measured(given: Inputs, options: argparse.Namespace) -> Iterator[Result]:
    """Yields the results."""
    precisions = ("fp16", "bf16", "fp32") if options.device == "cuda" else ("bf16", "fp32")
    forward = {name: forward_rate(given, options, name) for name in precisions}
    for name, rate in forward.items():
        yield spread(f"limits: forward, {name}", [rate], unit="images/s")

    heads = given.folder / "heads"
    whole_s = submit_heads(given, options, heads)
    yield spread("sweep: submit --wait, first", [whole_s], unit="s", notes=given.words)
    (view_rate,) = [statistics.median(view_rates(finished_runs(heads)))]
    yield spread("views", [view_rate], unit="images/s")
    yield ratio("views/fastest bare forward", [view_rate], [max(forward.values())])

    again = given.folder / "again"
    again_s = submit_heads(given, options, again)
    yield spread("sweep: submit --wait, again", [again_s], unit="s")
    yield spread("equal: two sweeps", [equal(heads, again)], unit="(1: yes)")
    if num_cores() > 4:
        with cores(4):
            few_s = submit_heads(given, options, given.folder / "few")
        yield ratio(f"sweep: 4 cores/{num_cores()} cores", [few_s], [again_s])
    killed = given.folder / "killed"
    was_killed = kill_and_continue(given, options, killed, submit_heads)
    yield spread("equal: killed heads", [equal(heads, killed)], unit="(1: yes)", notes=was_killed)

    rates = all_layers_rates(given, options, given.folder / "all")
    for size, rate in rates.items():
        bare = update_rate(given, options, size)
        plain = plain_rate(given, options, size)
        yield spread(f"limits: updates, batch size {size}", [bare], unit="images/s")
        yield spread(f"all: batch size {size}", [rate], unit="images/s")
        yield spread(f"plain loop, batch size {size}", [plain], unit="images/s")
        yield ratio(f"all: batch size {size}/bare updates", [rate], [bare])
        yield ratio(f"all: batch size {size}/plain loop", [rate], [plain])
    if not options.small:  # the same code as for heads
        killed = given.folder / "killed-all"
        was_killed = kill_and_continue(given, options, killed, submit_all)
        is_equal = equal(given.folder / "all", killed)
        yield spread("equal: killed, all layers", [is_equal], unit="(1: yes)", notes=was_killed)

    plain = accuracies(given, options, "fp32")
    for name in precisions[:-1]:
        points = [
            100 * (a - b) for a, b in zip(accuracies(given, options, name), plain, strict=True)
        ]
        mean = [statistics.mean(points)]
        yield spread(f"accuracy: {name} - fp32", mean, unit="percentage points")


# Limits --------------------------------------------------------------------------------------


def rate_of(action: Callable[[], object], num_images: int, options: argparse.Namespace) -> float:
    """Returns images/s of an action that is repeated, after three times that do not count."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    for _ in range(3):
        action()
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + options.seconds:
        action()
        wait()
        count += num_images
    return count / (time.perf_counter() - start)


def forward_rate(given: Inputs, options: argparse.Namespace, precision: str) -> float:
    """Returns images/s of the backbone, at the best of the batch sizes, plain or fused."""
    device = choose_device(options.device, precision)
    backbone = build_backbone(DEFAULT, given.weights)
    fused = choose_forward(backbone, device).network  # moves the backbone, too
    rates = []
    with torch.inference_mode():
        for size in options.forward_sizes:
            images = random_images(size, options).to(device.dtype)
            for network in (backbone, fused):
                rates.append(rate_of(lambda net=network, x=images: net(x), size, options))
    return max(rates)


def update_rate(given: Inputs, options: argparse.Namespace, batch_size: int) -> float:
    """Returns images/s of updates of all layers, on a GPU a CUDA graph each."""
    config = TrainConfig(data="d", weights="w", batch_size=batch_size, train="all", lr=0.0003)
    device = choose_device(options.device, all_precision(options))
    network = AllLayers(config, DEFAULT, given.weights, 2, device, SIDE)
    images, targets = random_images(batch_size, options), labels(batch_size, options)
    with torch.cuda.stream(network.stream):
        return rate_of(lambda: network.update(images, targets[None], 1.0), batch_size, options)


def all_precision(options: argparse.Namespace) -> str:
    return "bf16" if options.device == "cuda" else "fp32"


def random_images(count: int, options: argparse.Namespace) -> Tensor:
    images = torch.randn(count, 3, SIDE, SIDE, device=options.device)
    return images.contiguous(memory_format=torch.channels_last)


def labels(count: int, options: argparse.Namespace) -> Tensor:
    return torch.arange(count, device=options.device) % 2


# Sweeps --------------------------------------------------------------------------------------


def heads_options(options: argparse.Namespace) -> dict[str, object]:
    return {
        "device": options.device,
        "batch_sizes": options.batch_sizes,
        "seeds": options.seeds,
        "epochs": options.epochs,
    }


def all_options(options: argparse.Namespace) -> dict[str, object]:
    return {
        "device": options.device,
        "train": "all",
        "batch_sizes": options.all_sizes,
        "epochs": options.all_epochs,
        "precision": all_precision(options),
    }


def submit_heads(given: Inputs, options: argparse.Namespace, runs: Path) -> float:
    """Returns the seconds of a sweep of heads."""
    return submit_s(given, runs, name="sweep", **heads_options(options))


def submit_all(given: Inputs, options: argparse.Namespace, runs: Path) -> float:
    """Returns the seconds of a sweep that trains all layers."""
    return submit_s(given, runs, name="sweep", **all_options(options))


def view_rates(runs: Sequence[Run]) -> list[float]:
    """Returns the images/s of every view of training images that a job computed."""
    line = re.compile(r"view \d+ computed: \d+ images, ([\d.]+) images/s")
    logs = {text for run in runs for text in line.findall(run.log_file.read_text())}
    return [float(text) for text in logs]


def all_layers_rates(given: Inputs, options: argparse.Namespace, runs: Path) -> dict[int, float]:
    """Returns the images/s of the epochs after the first, with the test, by batch size."""
    submit_all(given, options, runs)
    return {
        run.config().batch_size: statistics.median(
            float(row["images_per_s"]) for row in metrics(run)[1:]
        )
        for run in finished_runs(runs)
    }


def accuracies(given: Inputs, options: argparse.Namespace, precision: str) -> list[float]:
    """Returns the last test accuracy of every run of a sweep of heads."""
    runs = given.folder / precision
    submit_s(given, runs, precision=precision, **heads_options(options))
    return [float(metrics(run)[-1]["test_accuracy"]) for run in finished_runs(runs)]


@contextlib.contextmanager
def cores(most: int) -> Iterator[None]:
    """Lets this process and those that it starts use only so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:most])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def kill_and_continue(
    given: Inputs,
    options: argparse.Namespace,
    runs: Path,
    submit: Callable[[Inputs, argparse.Namespace, Path], float],
) -> str:
    """Kills the first job of a sweep after an epoch, continues the sweep, and says where it was."""
    chosen = heads_options(options) if submit is submit_heads else all_options(options)
    chosen |= {"name": "sweep", "data": given.data, "weights": given.weights, "runs": runs}
    command = [sys.executable, "-m", "skinjob", "submit", "--cluster", "local", "--wait"]
    for name, value in chosen.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(
        command,
        cwd=given.folder,
        env=environment(given.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    where = "ended before it could be killed"
    while process.poll() is None:
        time.sleep(0.02)
        for run in finished_runs(runs) if runs.exists() else []:
            state = run.state()
            if (
                where.startswith("ended")
                and state.epoch
                and state.pid
                and state.status == "running"
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state.pid, signal.SIGKILL)
                    where = f"killed after epoch {state.epoch} of {run.config().epochs}"
    submit(given, options, runs)
    return where


def equal(one: Path, other: Path) -> float:
    """Returns 1.0 if the runs in two folders left the same bytes, but for clocks; else 0.0."""
    return float(
        [left(run) for run in finished_runs(one)] == [left(r) for r in finished_runs(other)]
    )


def left(run: Run) -> list[object]:
    rows = [{k: v for k, v in row.items() if not CLOCKS.match(k)} for row in metrics(run)]
    part = "head" if run.config().train == "head" else "model"
    trained = run.trained_file(part).read_bytes()
    return [run.name, rows, run.predictions_file.read_bytes(), trained]


# The plain loop ------------------------------------------------------------------------------


def plain_rate(given: Inputs, options: argparse.Namespace, batch_size: int) -> float:
    """Returns images/s of the second epoch, with the test, of a loop as one would write it.

    ImageFolder, a worker per core, channels_last, and bf16 autocast and fused AdamW on a GPU.
    """
    device = options.device
    model = pretrained(given.weights)
    model.fc = nn.Linear(512, num_classes(given.data))
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0003, fused=device == "cuda")
    workers = {
        "num_workers": num_cores(),
        "persistent_workers": True,
        "pin_memory": device == "cuda",
    }
    train = DataLoader(
        ImageFolder(given.data / "train", TRAIN), batch_size, shuffle=True, **workers
    )
    test = DataLoader(ImageFolder(given.data / "test", TEST), 64, **workers)

    def logits(images: Tensor) -> Tensor:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model(images).float()

    for _ in range(2):
        start = time.perf_counter()
        model.train()
        for images, targets in train:
            optimizer.zero_grad()
            functional.cross_entropy(logits(images), targets.to(device)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for images, targets in test:
                (logits(images).argmax(dim=1).cpu() == targets).sum()
        seconds = time.perf_counter() - start
    return len(train.dataset) / seconds


if __name__ == "__main__":
    main()
