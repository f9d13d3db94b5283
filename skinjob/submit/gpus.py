"""Which GPUs this machine has, asked without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def visible_gpus(devices: Path = Path("/dev")) -> tuple[int, ...]:
    """Returns the numbers of the NVIDIA GPUs that a process started here would see.

    The driver makes a file /dev/nvidiaN for each; CUDA_VISIBLE_DEVICES may leave some of them out.
    """
    names = (re.fullmatch(r"nvidia(\d+)", path.name) for path in devices.glob("nvidia*"))
    there = sorted(int(name[1]) for name in names if name)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(there)
    wanted = {int(word) for word in chosen.split(",") if word.strip().isdecimal()}
    return tuple(number for number in there if number in wanted)
