"""What the benchmarks share: inputs, whole processes timed, and results shown and kept.

A result is a ratio of two things that were measured in turns within one run, on one machine: it
holds where seconds do not. Low and high are the least and the greatest ratio of the turns.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]  # this checkout, whatever is installed

from untrained import write_untrained  # noqa: E402

from skinjob.data.lesions import CLASSES, make_images  # noqa: E402
from skinjob.queues.local import LocalQueue  # noqa: E402
from skinjob.sweeps.layout import Run, sweeps  # noqa: E402

BATCH_SIZES = "32,64,128,256"


@dataclass(frozen=True)
class Result:
    """One number of a benchmark, with its spread over *n* turns."""

    name: str
    ratio: float
    low: float
    high: float
    n: int
    unit: str = "x"
    """x for a ratio; else what the number counts."""
    notes: str = ""


@dataclass(frozen=True)
class Inputs:
    """A temporary folder to work in, with images and weights."""

    folder: Path
    data: Path
    weights: Path
    words: str
    """What the images and weights are."""

    def count(self, split: str) -> int:
        """Returns the number of images in a split."""
        return sum(1 for _ in (self.data / split).glob("*/*"))


# The command line ----------------------------------------------------------------------------


def parser(doc: str, *, num_train: int, num_test: int, n: int | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that every benchmark on images has."""
    arguments = bare_parser(doc, n=n)
    arguments.add_argument("--data", type=Path, help="image folder [default: generated images]")
    arguments.add_argument("--weights", type=Path, help="weights file [default: untrained]")
    arguments.add_argument(
        "--num-train", type=int, help=f"training images [default: all of --data, else {num_train}]"
    )
    arguments.add_argument(
        "--num-test", type=int, help=f"test images [default: all of --data, else {num_test}]"
    )
    arguments.set_defaults(generated={"train": num_train, "test": num_test})
    return arguments


def bare_parser(doc: str, *, n: int | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that every benchmark has; *n* None: it takes no turns."""
    arguments = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if n is not None:
        arguments.add_argument("--n", type=int, default=n, help="turns [default: %(default)s]")
    arguments.add_argument("--json", type=Path, help="append a JSON object per result to this file")
    return arguments


def numbers(text: str) -> list[int]:
    """Returns the whole numbers of a list such as 32,64.

    >>> numbers("32,64")
    [32, 64]
    """
    return [int(part) for part in text.split(",")]


# Inputs --------------------------------------------------------------------------------------


@contextmanager
def inputs(options: argparse.Namespace) -> Iterator[Inputs]:
    """Yields the inputs that the options ask for; their folder is removed afterwards."""
    counts = {"train": options.num_train, "test": options.num_test}
    with tempfile.TemporaryDirectory(prefix="skinjob-bench-") as name:
        folder = Path(name)
        data, images = folder / "skin_cancer", "generated images"
        if options.data is None:
            wanted = {split: counts[split] or options.generated[split] for split in counts}
            generate(data, wanted)
        else:
            images = f"images of {options.data}"
            link_images(options.data.resolve(), data, counts)
        weights = options.weights
        if weights is None:
            weights = write_untrained(folder / "weights" / "resnet18.safetensors").path
        words = f"{images}, {'untrained' if options.weights is None else 'given'} weights"
        found = Inputs(folder, data, weights.resolve(), words)
        print(f"on {hardware()}")
        print(f"{found.count('train')} train, {found.count('test')} test: {words}", flush=True)
        yield found


def generate(data: Path, counts: Mapping[str, int]) -> None:
    """Makes at least so many images in a split, the same number of each class."""
    each = {split: -(-count // len(CLASSES)) for split, count in counts.items()}
    make_images(data, num_train=each["train"], num_test=each["test"])


def link_images(source: Path, target: Path, counts: Mapping[str, int | None]) -> None:
    """Makes a tree of links to the first images of each class of *source*; None: to all."""
    for split, count in counts.items():
        classes = sorted(folder for folder in (source / split).iterdir() if folder.is_dir())
        for folder in classes:
            (target / split / folder.name).mkdir(parents=True)
            most = None if count is None else -(-count // len(classes))
            for image in sorted(folder.iterdir())[:most]:
                (target / split / folder.name / image.name).symlink_to(image)


# Whole processes -----------------------------------------------------------------------------


def submit_s(given: Inputs, runs: Path, **options: object) -> float:
    """Returns the seconds of a `skinjob submit --wait` on the CPU, from its start to its end.

    *runs* should be new: a folder that has seen the images before has their views.
    """
    options = {"data": given.data, "weights": given.weights, "runs": runs} | options
    command = [sys.executable, "-m", "skinjob", "submit", "--cluster", "local", "--device", "cpu"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    seconds = process_s([*command, "--wait"], given.folder)
    for sweep in sweeps(runs):
        LocalQueue().require_free(sweep)  # its queue leaves a moment later
    return seconds


def process_s(command: Sequence[str], folder: Path) -> float:
    """Returns the seconds that a command took, from its start to its end.

    Raises: SystemExit with what it said when it failed.
    """
    start = time.perf_counter()
    result = subprocess.run(
        command,
        cwd=folder,  # where no jobs/default.toml sets other defaults
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout[-3000:]}")
    return seconds


def environment(folder: Path) -> dict[str, str]:
    """Returns an environment with this checkout in front and none of the user's options.

    TMPDIR keeps the local queue's lock apart: a sweep of somebody else would be waited for.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKINJOB_")}
    return kept | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}


def in_turns(actions: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Returns the number that each action gave in every turn; every other turn is backwards.

    So a machine that grows slower or faster meets all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns):
        for name in list(actions) if turn % 2 == 0 else reversed(actions):
            found[name].append(actions[name]())
            print(f"turn {turn + 1}/{turns}: {name} {found[name][-1]:.4g}", flush=True)
    return found


def commands_in_turns(
    commands: Mapping[str, Sequence[str]], folder: Path, turns: int
) -> dict[str, list[float]]:
    """Returns the seconds of each command in every turn; one more, before them, is not counted.

    Then bytecode is compiled and files are read.
    """
    actions = {
        name: lambda command=command: process_s(command, folder)
        for name, command in commands.items()
    }
    for action in actions.values():
        action()
    return in_turns(actions, turns)


# What a sweep left ---------------------------------------------------------------------------


def finished_runs(runs: Path) -> list[Run]:
    """Returns the runs of all sweeps in a folder."""
    return list(chain.from_iterable(sweep.runs() for sweep in sweeps(runs)))


def metrics(run: Run) -> list[dict[str, str]]:
    """Returns the rows of a run's metrics.csv, one an epoch."""
    with run.metrics_file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


# Results -------------------------------------------------------------------------------------


def ratio(name: str, over: Sequence[float], under: Sequence[float], notes: str = "") -> Result:
    """Returns the median of the turns' ratios, over / under.

    >>> ratio("a/b", [2.0, 6.0, 3.0], [1.0, 2.0, 3.0])
    Result(name='a/b', ratio=2.0, low=1.0, high=3.0, n=3, unit='x', notes='')
    """
    return spread(name, [a / b for a, b in zip(over, under, strict=True)], notes=notes)


def spread(name: str, values: Sequence[float], unit: str = "x", notes: str = "") -> Result:
    """Returns the median of some values, with the least and the greatest."""
    median = statistics.median(values)
    return Result(name, median, min(values), max(values), len(values), unit, notes)


def report(results: Sequence[Result], json_file: Path | None) -> None:
    """Prints the results, and appends each as a JSON object to the file if there is one."""
    print()
    width = max(len(result.name) for result in results)
    for result in results:
        print(_line(result, width), flush=True)
    if json_file:
        with json_file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(r) | machine()) + "\n" for r in results)


def _line(result: Result, width: int) -> str:
    numbers = f"{result.ratio:8.3f} {result.unit}  ({result.low:.3f} to {result.high:.3f}"
    notes = f"  {result.notes}" if result.notes else ""
    return f"{result.name:<{width}}  {numbers}, n={result.n}){notes}"


def machine() -> dict[str, object]:
    """Returns on what, with which versions and when this was measured."""
    packages = ("skinjob", "torch", "torchvision", "numpy", "pillow")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "cpu": cpu_model(),
        "cores": num_cores(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def hardware() -> str:
    """Returns the machine in a line."""
    amx = ", AMX" if "amx_tile" in _cpuinfo() else ""
    return f"{cpu_model()}, {num_cores()} cores{amx}, torch {version('torch')}"


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Returns the CPU's name, with family and model where the name says little."""
    found = dict(
        (part.strip() for part in line.split(":", 1))
        for line in _cpuinfo().split("\n\n")[0].splitlines()
        if ":" in line
    )
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found['cpu family']}, model {found['model']})"


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.exists() else ""
