"""Compares `skinjob report` on big sweeps with importing pandas and matplotlib alone.

Each is a whole process. The sweeps are drawn learning curves, made before the clock starts.

Example:
  python tests/benchmarks/report.py --n 3
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from common import ROOT, Result, bare_parser, hardware, in_turns, process_s, ratio, report, spread

sys.path.insert(0, str(ROOT / "tests/support"))

from sweep_maker import draw_sweep  # found by the line above

SWEEPS: dict[str, dict[str, Any]] = {
    "4 runs of 20 epochs": {},
    "1,000 runs of 100 epochs": {"seeds": range(250), "epochs": 100},
    "1,000 runs of 100 epochs, 5 lrs": {
        "lrs": (0.001, 0.003, 0.01, 0.03, 0.1),
        "seeds": range(50),
        "epochs": 100,
    },
}


def main() -> None:
    """Times the report of each sweep in turns with the imports, and prints what was found."""
    options = bare_parser(__doc__, n=3).parse_args()
    print(f"on {hardware()}")
    report(
        [result for name in SWEEPS for result in results(name, options.n)],
        options.json,
    )


def results(name: str, n: int) -> list[Result]:
    """Returns the seconds of a sweep's report, and their ratio to those of the imports."""
    with TemporaryDirectory(prefix="skinjob-bench-") as folder:
        sweep = Path(folder) / "sweep"
        with mock.patch("os.fsync"):  # a thousand runs in seconds; these are not to be kept
            draw_sweep(sweep, **SWEEPS[name], has_predictions=True)
        commands = {
            "report": [sys.executable, "-m", "skinjob", "report", str(sweep)],
            "imports": [sys.executable, "-c", "import pandas, matplotlib.figure"],
        }
        seconds = in_turns(
            {
                what: lambda command=command: process_s(command, Path(folder))
                for what, command in commands.items()
            },
            n,
        )
    return [
        spread(f"report of {name}", seconds["report"], "s"),
        ratio(f"report of {name}/imports", seconds["report"], seconds["imports"]),
    ]


if __name__ == "__main__":
    main()
