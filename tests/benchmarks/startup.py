"""Compares `skinjob --help` with a Python that imports click and does nothing.

Example:
  python tests/benchmarks/startup.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common import bare_parser, commands_in_turns, hardware, ratio, report, spread


def main() -> None:
    """Measures both in turns and prints the ratio."""
    options = bare_parser(__doc__, n=20).parse_args()
    print(f"on {hardware()}")
    commands = {"help": skinjob_help(), "click": [sys.executable, "-c", "import click"]}
    with TemporaryDirectory(prefix="skinjob-bench-") as name:
        seconds = commands_in_turns(commands, Path(name), options.n)
    report(
        [
            spread("skinjob --help", seconds["help"], unit="s"),
            spread("import click", seconds["click"], unit="s"),
            ratio("help/click", seconds["help"], seconds["click"]),
        ],
        options.json,
    )


def skinjob_help() -> list[str]:
    """Returns the console script's command line, or the module's where no script is installed."""
    script = Path(sys.executable).with_name("skinjob")
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "skinjob"]), "--help"]


if __name__ == "__main__":
    main()
