"""Compares `skinjob --help` with a Python that imports click and does nothing, and what a job
imports before its first image with torch alone.

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
    imports = {
        "click": "click",
        "job": "skinjob.train.job",
        "torch": "torch, numpy, safetensors.torch",
        "torchvision": "torch, torchvision",
    }
    commands = {"help": skinjob_help()} | {
        name: [sys.executable, "-c", f"import {modules}"] for name, modules in imports.items()
    }
    with TemporaryDirectory(prefix="skinjob-bench-") as name:
        seconds = commands_in_turns(commands, Path(name), options.n)
    report(
        [
            spread("skinjob --help", seconds["help"], unit="s"),
            *(spread(f"import {imports[name]}", seconds[name], unit="s") for name in imports),
            ratio("help/click", seconds["help"], seconds["click"]),
            ratio("job/torch", seconds["job"], seconds["torch"]),
            ratio("torchvision/torch", seconds["torchvision"], seconds["torch"]),
        ],
        options.json,
    )


def skinjob_help() -> list[str]:
    """Returns the console script's command line, or the module's where no script is installed."""
    script = Path(sys.executable).with_name("skinjob")
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "skinjob"]), "--help"]


if __name__ == "__main__":
    main()
