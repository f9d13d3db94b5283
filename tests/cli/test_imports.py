"""A command imports no heavy library that it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import all_commands, import_path


@pytest.mark.parametrize("command", [[], *([name] for name in all_commands())], ids=" ".join)
def test_help_loads_no_heavy_library(command: list[str]) -> None:
    """The help of every command appears at once."""
    code = (
        "import sys\n"
        "from skinjob.cli import main\n"
        f"try: main({[*command, '--help']})\n"
        "except SystemExit: pass\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    loaded = set(output.split("LOADED")[1].split())
    assert "click" in loaded
    assert not loaded & {"torch", "torchvision", "submitit", "pandas", "matplotlib", "numpy", "PIL"}


def test_login_node_and_report_load_no_torch(tmp_path: Path) -> None:
    """Fetch, submit and report work in the base install: none of their imports loads torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"  # makes an import of it fail
        "import skinjob.weights.fetch, skinjob.submit.submit, skinjob.queues.local\n"
        "import skinjob.report.build, skinjob.data.lesions, skinjob.data.shapes\n"
    )
    environment = os.environ | import_path()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
