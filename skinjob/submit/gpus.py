"""Which GPUs this machine has, asked without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path


def visible_gpus(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Returns a word for CUDA_VISIBLE_DEVICES for each GPU that a process started here would see.

    Where that variable is set they are its own words (numbers, GPU-... or MIG-...), otherwise the
    numbers that CUDA counts by: 0 up to the number of the driver's /dev/nvidiaN.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        names = [path.name for path in devices.glob("nvidia*")]
        return tuple(map(str, range(sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in names))))
    words = [word.strip() for word in chosen.split(",")]
    for end, word in enumerate(words):
        if word in ("", "-1"):  # CUDA reads no further
            return tuple(words[:end])
    return tuple(words)
