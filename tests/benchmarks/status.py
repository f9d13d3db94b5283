"""Compares `skinjob status` of a thousand runs with a Python that imports click and does nothing.

Half of the runs are at work, half are done; SLURM does not answer, so that the time is ours alone.

Example:
  python tests/benchmarks/status.py --n 10
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from common import ROOT, bare_parser, commands_in_turns, hardware, ratio, report, spread

sys.path.insert(0, str(ROOT / "tests/support"))

from sweep_maker import draw_sweep  # found by the line above

from skinjob.sweeps.layout import run_name

SEEDS = range(250)  # of four batch sizes


def main() -> None:
    """Measures them in turns and prints the ratios."""
    options = bare_parser(__doc__, n=10).parse_args()
    print(f"on {hardware()}")
    os.environ["PATH"] = "/nonexistent"  # no squeue
    at_work = {run_name(size, 0.01, seed): 5 for size in (32, 64) for seed in SEEDS}
    with TemporaryDirectory(prefix="skinjob-bench-") as name:
        folder = Path(name)
        with mock.patch("os.fsync"):  # these are not to be kept
            draw_sweep(folder / "runs/sweep", seeds=SEEDS, finished=at_work)
        skinjob = f"{shlex.quote(sys.executable)} -m skinjob"
        at_work_too = "[ $? = 3 ]"  # its exit code while runs are at work
        commands = {
            "status": ["/bin/sh", "-c", f"{skinjob} status; {at_work_too}"],
            "status --json": ["/bin/sh", "-c", f"{skinjob} status --json; {at_work_too}"],
            "list": ["/bin/sh", "-c", f"{skinjob} list"],
            "click": [sys.executable, "-c", "import click"],
        }
        seconds = commands_in_turns(commands, folder, options.n)
    ours = [what for what in commands if what != "click"]
    report(
        [spread(f"{what} of 1,000 runs", seconds[what], unit="s") for what in ours]
        + [ratio(f"{what}/import click", seconds[what], seconds["click"]) for what in ours],
        options.json,
    )


if __name__ == "__main__":
    main()
