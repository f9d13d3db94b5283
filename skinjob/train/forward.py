"""How a batch goes through the backbone: layer by layer, or compiled where that saves time."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skinjob.ownership import make_private, require_safe
from skinjob.train.device import Device

log = logging.getLogger("skinjob")

COMPILED_BATCH = 8  # fits the cache of a core; other sizes would need other compiled code
WORTH_IMAGES = 15_000  # minutes of two cores; compiling takes seconds


@dataclass(frozen=True)
class Forward:
    """A backbone on its device."""

    network: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    batch_sizes: tuple[int, ...]
    """Images per forward pass to choose from."""
    is_compiled: bool = False
    """Whether the network accepts only batches of the first size. Smaller batches are padded."""

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features, (B, num_features) float32 on the CPU, of (B, 3, S, S) float32."""
        images = images.to(self.dtype)
        num_missing = self.batch_sizes[0] - len(images) if self.is_compiled else 0
        if num_missing:
            images = torch.cat([images, images[:1].expand(num_missing, -1, -1, -1)])
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)[: len(images) - num_missing].float().cpu()


def choose_forward(
    backbone: nn.Module, device: Device, *, num_images: int, side: int, folder: Path
) -> Forward:
    """Returns the backbone on its device, compiled for this CPU where that saves time.

    *num_images* is the total over all views of the sweep. *side* is the side of an image in pixels.
    Compiled code is kept in *folder*, with a folder for each kind of CPU.
    """
    backbone = backbone.to(device.type, device.dtype)
    layer_by_layer = Forward(backbone, device.dtype, device.batch_sizes)
    if device.type != "cpu":
        return layer_by_layer
    # Compiled, bf16 computes 1.25 times the images/s (n=9), but fp32 only 1.02 times (n=7).
    if device.precision != "bf16" or num_images < WORTH_IMAGES:
        log.info(
            "backbone: not compiled (%s, %d images; worth it in bf16, from %d images)",
            device.precision,
            num_images,
            WORTH_IMAGES,
        )
        return layer_by_layer
    start = time.perf_counter()
    try:
        compiled = _compiled(backbone, device, side, folder / cpu_digest())
    except Exception as error:  # no C++ compiler, no Python headers, a full disk: many types
        log.info("backbone: not compiled (%s)", str(error).strip().split("\n")[0])
        return layer_by_layer
    log.info(
        "backbone: compiled in %.1f s, kept in %s",
        time.perf_counter() - start,
        os.environ["TORCHINDUCTOR_CACHE_DIR"],
    )
    return Forward(compiled, device.dtype, (COMPILED_BATCH,), is_compiled=True)


def _compiled(
    backbone: nn.Module, device: Device, side: int, folder: Path
) -> Callable[[Tensor], Tensor]:
    """Returns the backbone compiled with its weights as constants."""
    for private in (folder.parent, folder):  # later jobs execute the code in it
        make_private(private)
    require_safe(folder)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))
    from torch._inductor import config as inductor  # importing it takes seconds

    torch.set_num_threads(1)  # part of the compiled code: a stream has a single core
    compiled: Callable[[Tensor], Tensor] = torch.compile(backbone, dynamic=False)
    example = torch.zeros(COMPILED_BATCH, 3, side, side, dtype=device.dtype)
    # As options of torch.compile, they would not tell its front end that weights are constants.
    with inductor.patch(freezing=True, compile_threads=1), torch.inference_mode():
        compiled(example.contiguous(memory_format=torch.channels_last))
    return compiled


def cpu_digest() -> str:
    """Returns a digest of what compiled code depends on: this CPU's instructions and torch."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    cpu = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    words = [platform.machine(), torch.__version__, *sorted(cpu)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
