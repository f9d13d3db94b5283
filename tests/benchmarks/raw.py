"""How many images a second ResNet18 takes at best on this CPU, with nothing around it.

No images are read and nothing is learnt: the same random numbers go through the net again and
again, channels_last, with batch norm folded into the convolutions: as it is, with oneDNN's fused
convolutions as skinjob has them, and compiled by torch.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import num_cores
from rivals import has_amx, pretrained
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, ResNet

from skinjob.train.forward import OneDnnResNet
from skinjob.train.model import build_backbone
from skinjob.weights.backbones import DEFAULT

BATCH_SIZES = (4, 8, 16, 32)
COMPILED = (8, 16)
HOW = ("as it is", "fused", "compiled")


@dataclass(frozen=True)
class Setting:
    """One way to put images through the net."""

    batch_size: int
    streams: int
    """Batches at the same time, each on its share of the cores."""
    precision: str
    how: str = HOW[0]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def __str__(self) -> str:
        streams = "a stream per core" if self.streams > 1 else "one stream"
        return f"{self.how}, {self.precision}, batches of {self.batch_size}, {streams}"


def settings(precision: str) -> list[Setting]:
    """Returns the ways that may be the fastest; bf16 only if asked for or if there are units."""
    has_bf16 = has_amx() or torch.cpu._is_avx512_bf16_supported()
    precisions = {"auto": ("fp32", "bf16") if has_bf16 else ("fp32",)}.get(precision, (precision,))
    streams = sorted({1, num_cores()})
    choices = [
        *itertools.product(BATCH_SIZES, streams, precisions, ("as it is",)),
        *itertools.product(BATCH_SIZES, streams[-1:], precisions, ("fused",)),
        *itertools.product(COMPILED, streams[-1:], precisions, ("compiled",)),
    ]
    return [Setting(*choice) for choice in choices]


def forward_rates(weights: Path, precision: str, seconds: float) -> dict[Setting, float]:
    """Returns the images a second of every setting, each measured for *seconds*."""
    return {setting: forward_rate(weights, setting, seconds) for setting in settings(precision)}


def forward_rate(weights: Path, setting: Setting, seconds: float) -> float:
    """Returns the images a second that all streams together put through the net."""
    backbone: Callable[[Tensor], Tensor] = folded_backbone(weights, setting.dtype)
    if setting.how == "compiled":
        backbone = compiled_backbone(backbone, setting)
    elif setting.how == "fused":
        backbone = OneDnnResNet(build_backbone(DEFAULT, weights).to(setting.dtype))
    rates = [0.0] * setting.streams
    ready = threading.Barrier(setting.streams)

    def stream(number: int) -> None:
        torch.set_num_threads(num_cores() // setting.streams)  # of this stream alone
        images = torch.randn(setting.batch_size, 3, 224, 224, dtype=setting.dtype)
        images = images.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            backbone(images)  # the first pass chooses kernels
            ready.wait()
            start, count = time.perf_counter(), 0
            while time.perf_counter() < start + seconds:
                backbone(images)
                count += setting.batch_size
            rates[number] = count / (time.perf_counter() - start)

    threads = [threading.Thread(target=stream, args=(n,)) for n in range(setting.streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(num_cores())
    return sum(rates)


def compiled_backbone(backbone: nn.Module, setting: Setting) -> nn.Module:
    """Returns the backbone compiled for batches of one size on one core."""
    from torch._inductor import config as inductor  # takes seconds

    torch.set_num_threads(1)
    torch._dynamo.reset()
    images = torch.randn(setting.batch_size, 3, 224, 224, dtype=setting.dtype)
    compiled: nn.Module = torch.compile(backbone, dynamic=False)
    with inductor.patch(freezing=True), torch.inference_mode():
        compiled(images.to(memory_format=torch.channels_last))
    return compiled


def folded_backbone(weights: Path, dtype: torch.dtype) -> nn.Module:
    """Returns the frozen backbone, each batch norm folded into the convolution before it."""
    model = pretrained(weights).eval().requires_grad_(False)
    model.fc = nn.Identity()
    for module in [m for m in model.modules() if isinstance(m, (ResNet, BasicBlock))]:
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
            if hasattr(module, conv):
                folded = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, folded)
                setattr(module, norm, nn.Identity())
        if getattr(module, "downsample", None) is not None:
            module.downsample = fuse_conv_bn_eval(*module.downsample)
    return model.to(dtype, memory_format=torch.channels_last)
