"""Which GPUs this machine has, asked without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEVICES = Path("/dev")
UNCOUNTED = ("dxg", "kfd")
"""What WSL and AMD have for all their GPUs together: how many these are, no file says."""


def visible_gpus(devices: Path = DEVICES) -> tuple[str, ...]:
    """Returns a word for CUDA_VISIBLE_DEVICES for each GPU that a process started here would see.

    Where that variable is set they are its own words (numbers, GPU-... or MIG-...), otherwise the
    numbers that CUDA counts by: 0 up to the number of the driver's /dev/nvidiaN. As in CUDA, the
    first word that is no GPU ends the list, and a GPU that is listed twice empties it.
    """
    names = [path.name for path in devices.glob("nvidia*")]
    num_gpus = sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in names)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(map(str, range(num_gpus)))
    is_uncounted = not num_gpus and any((devices / name).exists() for name in UNCOUNTED)
    words: list[str] = []
    for word in map(str.strip, chosen.split(",")):
        if re.fullmatch(r"[0-9]{1,9}", word) and (int(word) < num_gpus or is_uncounted):
            word = str(int(word))
        elif not (re.fullmatch(r"(GPU|MIG)-[\w/-]+", word) and (num_gpus or is_uncounted)):
            break
        if word in words:
            return ()
        words.append(word)
    return tuple(words)


def no_gpu_reason(devices: Path = DEVICES) -> str:
    """Returns in words why `visible_gpus` is empty."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not any(devices.glob("nvidia[0-9]*")):
        return "this machine has no GPU"
    return f"CUDA_VISIBLE_DEVICES={chosen!r} names no GPU of this machine"
