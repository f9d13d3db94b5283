"""How many GPUs this machine has, asked without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def count_gpus() -> int:
    """Returns the number of NVIDIA GPUs that a process started here would see."""
    devices = [
        path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(devices)
    return min(
        len(devices), len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    )
