"""The device on which the backbone runs and its precision, each with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from skinjob.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cuda": (1024,), "cpu": (4, 8, 16, 32)}
"""Candidates for the number of images per forward pass. In eval mode it only changes rounding."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device and a precision, each with the reason for the choice."""

    type: str
    precision: str
    device_reason: str
    precision_reason: str
    num_threads: int

    @property
    def name(self) -> str:
        """The name of the hardware."""
        if self.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.num_threads} CPU thread{'s' if self.num_threads > 1 else ''}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def num_streams(self) -> int:
        """Batches that are computed at the same time.

        On a CPU each has its own thread, from the decoded images to the features, so no core waits
        for another at the end of a layer. A GPU computes a large batch.
        """
        return 1 if self.type == "cuda" else self.num_threads

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return BATCH_SIZES[self.type]


def choose_device(
    device: str,
    precision: str,
    num_cpus: int | None = None,
    *,
    trained: str = "head",
    keeps_fp16: bool = True,
    try_bf16: Callable[[], tuple[bool, str]] = lambda: (False, "bf16 has not been tried here"),
) -> Device:
    """Returns the device and the precision of a configuration, with `auto` resolved here.

    *trained* is head or all. *keeps_fp16* says whether fp16 is known to keep the features of the
    network, *try_bf16* whether bf16 serves on this CPU, and why. Sets the number of threads that
    torch uses: the CPU cores that this process may use, at most *num_cpus*.

    Raises: ConfigError when the configuration asks for a GPU and torch sees none.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
    num_threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_threads = min(num_threads, num_cpus or num_threads)
    kind, device_reason = _device(device)
    precision_reason = "asked for"
    if precision == "auto":
        precision, reason = (
            _gpu_precision(trained, keeps_fp16) if kind == "cuda" else _cpu_precision(try_bf16)
        )
        precision_reason = f"auto: {reason}"
    torch.set_num_threads(num_threads)
    if kind == "cuda":
        # Without this, cuDNN's convolutions in fp32 would round to the 10 bits of TF32.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.deterministic = True  # the same bytes each time, at no cost measured
    return Device(
        type=kind,
        precision=precision,
        device_reason=device_reason,
        precision_reason=precision_reason,
        num_threads=num_threads,
    )


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
        "nvidia-smi on the node shows the newest CUDA of its driver: install a torch for that; "
        "or submit with --device cpu",
    )


def _gpu_precision(trained: str, keeps_fp16: bool) -> tuple[str, str]:
    """Returns the precision for this GPU and why.

    fp16 rounds less than bf16, and every GPU with tensor cores has it. Gradients would underflow.
    """
    if trained == "head" and not keeps_fp16:
        return "fp32", "fp16 has been measured for ResNets alone; --precision fp16 asks for it"
    if trained == "head" and torch.cuda.get_device_capability() >= (7, 0):
        return "fp16", "this GPU computes in fp16"
    if trained == "all" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU computes in bf16"
    return "fp32", f"this GPU has no {'fp16' if trained == 'head' else 'bf16'} units"


def _cpu_precision(try_bf16: Callable[[], tuple[bool, str]]) -> tuple[str, str]:
    # Without units, bf16 is emulated: 8 images/s against 36 in fp32, on an AVX-512 core.
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "this CPU has no bf16 units"
    serves, reason = try_bf16()
    return "bf16" if serves else "fp32", reason
