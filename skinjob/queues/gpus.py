"""Lists the GPUs of this machine without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEVICES = Path("/dev")
UNCOUNTED = ("dxg", "kfd")
"""Device files of WSL and AMD, which stand for any number of GPUs."""


def visible_gpus(devices: Path = DEVICES) -> tuple[str, ...]:
    """Returns a value of CUDA_VISIBLE_DEVICES for each GPU that a new process would see.

    If that variable is set, these are its parts (numbers, GPU-... or MIG-...). Otherwise they are
    the numbers from 0, as many as the driver has files /dev/nvidiaN. As in CUDA, the first part
    that is not a GPU ends the list, and a GPU that is listed twice empties it.
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
    """Returns why `visible_gpus` is empty, as part of a sentence."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not any(devices.glob("nvidia[0-9]*")):
        return "this machine has no GPU"
    return f"CUDA_VISIBLE_DEVICES={chosen!r} names no GPU of this machine"
