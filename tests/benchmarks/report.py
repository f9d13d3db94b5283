"""How long `skinjob report` takes on a big sweep, as a whole process.

    python tests/benchmarks/report.py

Prints a line of JSON and a line to read for each sweep, on stdout. No test runs this: times depend
on the machine, and on what else it does. The ratio depends less on it: it is against importing
pandas and matplotlib alone, timed in turns with the report, so that a slow minute slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from sweep_maker import make_sweep  # noqa: E402  (found by the line above)

IMPORTS = ("-c", "import pandas, matplotlib.figure")
SWEEPS: dict[str, dict[str, Any]] = {
    "report, 4 runs of 20 epochs": {},
    "report, 1000 runs of 100 epochs": {"seeds": range(250), "epochs": 100},
    "report, 1000 runs of 100 epochs, 5 lrs": {
        "lrs": (0.001, 0.003, 0.01, 0.03, 0.1),
        "seeds": range(50),
        "epochs": 100,
    },
}


def main() -> None:
    """Times the report of each sweep and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=3, help="times that each is run [default: 3]")
    n = parser.parse_args().n
    for name, options in SWEEPS.items():
        with tempfile.TemporaryDirectory() as folder:
            sweep = Path(folder) / "sweep"
            with mock.patch("os.fsync"):  # a thousand runs in seconds; these are not to be kept
                make_sweep(sweep, **options)
            show(name, *in_turns(n, IMPORTS, ("-m", "skinjob", "report", str(sweep))))


def in_turns(n: int, *programs: Sequence[str]) -> list[list[float]]:
    """Returns the seconds of each Python program's *n* runs, after one that warms the disk."""
    rounds = [[seconds(program) for program in programs] for _ in range(n + 1)]
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def seconds(program: Sequence[str]) -> float:
    """Returns how long a Python process takes from its start to its end."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *program], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def show(name: str, imports_s: list[float], report_s: list[float]) -> None:
    """Prints a benchmark as JSON, and as a sentence."""
    low, median, high = min(report_s), statistics.median(report_s), max(report_s)
    ratio = median / statistics.median(imports_s)
    found = {
        "benchmark": name,
        "n": len(report_s),
        "min_s": round(low, 2),
        "median_s": round(median, 2),
        "max_s": round(high, 2),
        "imports_median_s": round(statistics.median(imports_s), 2),
        "ratio_to_imports": round(ratio, 1),
    }
    print(json.dumps(found))
    print(
        f"{name}: {median:.1f} s ({low:.1f} to {high:.1f}, n = {len(report_s)}), "
        f"{ratio:.1f} times as long as importing pandas and matplotlib",
        flush=True,
    )


if __name__ == "__main__":
    main()
