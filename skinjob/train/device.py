"""The device that the backbone runs on and its precision, each with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from skinjob.errors import ConfigError

MOST_CUDA_STREAMS = 8  # each keeps a batch on the GPU and a core of the CPU busy
BATCH_SIZES = {"cuda": (32, 64, 128), "cpu": (4, 8, 16, 32)}
"""Images per forward pass to choose from. In eval mode images are independent: the batch size
changes rounding only."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device and a precision, each with the reason it was chosen."""

    type: str
    precision: str
    device_reason: str
    precision_reason: str
    num_threads: int

    @property
    def name(self) -> str:
        """The hardware's own name."""
        if self.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.num_threads} CPU thread{'s' if self.num_threads > 1 else ''}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def num_streams(self) -> int:
        """Batches that are under way at the same time, each in its own thread.

        A thread decodes, augments and forwards its batch: no core waits for another at the end of
        each layer, and on a GPU one stream's copies overlap with another's kernels.
        """
        return min(self.num_threads, MOST_CUDA_STREAMS) if self.type == "cuda" else self.num_threads

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return BATCH_SIZES[self.type]


def choose_device(device: str, precision: str) -> Device:
    """Returns the device and precision that were asked for, with `auto` resolved on this machine.

    Sets the number of threads that torch uses to the CPU cores that this process may use.

    Raises: ConfigError when a GPU was asked for and torch sees none.
    """
    num_threads = usable_cpus()
    torch.set_num_threads(num_threads)
    kind, device_reason = _device(device)
    precision, precision_reason = _precision(precision, kind)
    if kind == "cuda":
        # Asked for fp32, get fp32: without this, cuDNN's convolutions round to TF32's 10 bits.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return Device(
        type=kind,
        precision=precision,
        device_reason=device_reason,
        precision_reason=precision_reason,
        num_threads=num_threads,
    )


def usable_cpus() -> int:
    """Returns the CPU cores this process may use: its affinity, or fewer where SLURM gave fewer."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(given)) if given.isdecimal() and int(given) > 0 else cores


def _device(device: str) -> tuple[str, str]:
    if device == "cpu":
        return "cpu", "asked for"
    if torch.cuda.is_available():
        return "cuda", "asked for" if device == "cuda" else "auto: a CUDA device is visible"
    if device == "auto":
        return "cpu", "auto: no CUDA device visible"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    built = torch.version.cuda or "none, a CPU build"
    raise ConfigError(
        "device cuda was asked for and torch sees no GPU "
        f"(CUDA_VISIBLE_DEVICES={visible!r}, torch's CUDA: {built})",
        "nvidia-smi there shows the newest CUDA of its driver: install a torch built for that; "
        "or submit with --device cpu",
    )


def _precision(precision: str, kind: str) -> tuple[str, str]:
    if precision != "auto":
        return precision, "asked for"
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "auto: this GPU computes in bf16"
        return "fp32", "auto: this GPU has no bf16 units"
    # Without these units bf16 is emulated: 16 images/s against 64 in fp32, on 2 AVX-512 cores.
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "auto: this CPU has AMX bf16 units"
    return "fp32", "auto: this CPU has no AMX bf16 units"
