"""How a batch goes through the backbone: by fused convolutions where the hardware has them.

A fused convolution adds the shortcut and applies the ReLU before its result leaves the cache. So a
CPU needs no compiler: fused, bf16 computes 1.25 times the images/s, compiled 1.3 times, and
compiling took 5 s on 2 cores and 55 s on 16.

The plain network is the reference. It stays where fused convolutions give other features.
"""

from __future__ import annotations

import copy
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skinjob.train.device import DTYPES, Device
from skinjob.train.resnet import ResNet

log = logging.getLogger("skinjob")

MOST_ERROR = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Relative error of features that is put down to rounding. Measured: 1e-7, 7e-4 and 5e-3."""
CHECKED_IMAGES, CHECKED_SIDE = 2, 64
TIMED_IMAGES, TIMED_PASSES = 4, 3
LEAST_GAIN = 1.2  # less may be chance, and the jobs of a sweep should choose alike


@dataclass(frozen=True)
class Forward:
    """A backbone on its device."""

    network: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    batch_sizes: tuple[int, ...]
    """Images per forward pass to choose from."""

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features, (B, num_features) float32, of (B, 3, S, S) on the same device."""
        return self.network(images.to(self.dtype)).float()


def choose_forward(backbone: nn.Module, device: Device) -> Forward:
    """Returns the backbone on its device, fused where that gives the same features."""
    backbone = backbone.to(device.type, device.dtype)
    network, words = _fastest(backbone, device.type, device.precision)
    log.info("backbone: channels_last, batch norm folded, convolutions %s", words)
    return Forward(network, device.dtype, device.batch_sizes)


def try_bf16(backbone: nn.Module, side: int) -> tuple[bool, str]:
    """Says whether bf16 serves on this CPU, and why: a batch is timed on a core, and checked.

    Computing units alone do not tell: with the same avx512_bf16, bf16 is faster on one CPU and
    slower on another. Sets the number of torch's threads to 1.
    """
    torch.set_num_threads(1)  # the clock is this thread's, so other processes do not disturb it
    images = noise(TIMED_IMAGES, side)
    seconds, features = {}, {}
    for precision in ("fp32", "bf16"):
        dtype = DTYPES[precision]
        network, _ = _fastest(copy.deepcopy(backbone).to(dtype), "cpu", precision)
        forward = Forward(network, dtype, ())
        with torch.inference_mode():
            features[precision] = forward(images)
            seconds[precision] = min(_cpu_s(forward, images) for _ in range(TIMED_PASSES))
    error, gain = (
        relative_error(features["bf16"], features["fp32"]),
        seconds["fp32"] / seconds["bf16"],
    )
    words = f"bf16 is {gain:.1f} times as fast as fp32 on this CPU, features differ by {error:.1%}"
    return gain >= LEAST_GAIN and error <= MOST_ERROR["bf16"], words


def _cpu_s(forward: Forward, images: Tensor) -> float:
    start = time.thread_time()
    forward(images)
    return time.thread_time() - start


def _fastest(
    backbone: nn.Module, kind: str, precision: str
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Returns the fused network, or the plain one and why."""
    if not isinstance(backbone, ResNet):
        return backbone, "not fused (not a ResNet)"
    if kind == "cuda" and precision == "fp32":
        return backbone, "not fused (fp32 on a GPU)"
    try:
        fused = (CudnnResNet if kind == "cuda" else OneDnnResNet)(backbone)
        images = noise(CHECKED_IMAGES, CHECKED_SIDE).to(kind, DTYPES[precision])
        with torch.inference_mode():
            error = relative_error(fused(images), backbone(images))
    except (RuntimeError, AttributeError, NotImplementedError) as problem:  # no such call here
        return backbone, f"not fused ({str(problem).strip().splitlines()[0]})"
    if not error <= MOST_ERROR[precision]:
        return backbone, f"not fused (features would differ by {error:.1%})"
    return fused, "fused with what follows"


def noise(num_images: int, side: int) -> Tensor:
    """Returns the same random images each time, (N, 3, side, side) float32, channels_last."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, side, side, generator=generator)
    return images.to(memory_format=torch.channels_last)


def relative_error(features: Tensor, reference: Tensor) -> float:
    """Returns the norm of the difference over the norm of the reference."""
    difference = features.float() - reference.float()
    return float(difference.norm() / reference.float().norm())


class FusedResNet(ABC):
    """The backbone of a ResNet with folded batch norm, a call for each convolution.

    All tensors are channels_last.
    """

    def __init__(self, backbone: ResNet) -> None:
        self.backbone = backbone

    def __call__(self, images: Tensor) -> Tensor:
        """Returns (B, num_features) of (B, 3, S, S)."""
        x = self.backbone.maxpool(self.stem(self.backbone.conv1, images))
        for block in self.backbone.blocks:
            shortcut = x if block.downsample is None else self.conv(block.downsample[0], x)
            *before, last = block.convolutions
            for layer in before:
                x = self.conv_relu(layer, x)
            x = self.conv_add_relu(last, x, shortcut)
        features: Tensor = self.backbone.avgpool(x).flatten(1)
        return features

    @abstractmethod
    def stem(self, layer: Any, images: Tensor) -> Tensor:
        """Returns the first convolution of *images*, and the ReLU after it."""

    @abstractmethod
    def conv(self, layer: Any, x: Tensor) -> Tensor: ...

    @abstractmethod
    def conv_relu(self, layer: Any, x: Tensor) -> Tensor: ...

    @abstractmethod
    def conv_add_relu(self, layer: Any, x: Tensor, shortcut: Tensor) -> Tensor:
        """Returns the ReLU of convolution plus *shortcut*, which may be overwritten."""


class CudnnResNet(FusedResNet):
    """On a GPU. The first convolution gets a fourth channel of zeros, which its units need."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__(backbone)
        weight = functional.pad(backbone.conv1.weight, (0, 0, 0, 0, 0, 1))  # (64, 4, 7, 7)
        self._stem_weight = weight.contiguous(memory_format=torch.channels_last)

    def stem(self, layer: Any, images: Tensor) -> Tensor:
        padded = functional.pad(images, (0, 0, 0, 0, 0, 1))  # (B, 4, S, S)
        x = torch.conv2d(padded, self._stem_weight, layer.bias, layer.stride, layer.padding)
        return x.relu_()

    def conv(self, layer: Any, x: Tensor) -> Tensor:
        y: Tensor = layer(x)
        return y

    def conv_relu(self, layer: Any, x: Tensor) -> Tensor:
        return torch.cudnn_convolution_relu(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    def conv_add_relu(self, layer: Any, x: Tensor, shortcut: Tensor) -> Tensor:
        return torch.cudnn_convolution_add_relu(
            x, layer.weight, shortcut, 1.0,
            layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups,
        )  # fmt: skip


class OneDnnResNet(FusedResNet):
    """On a CPU, by the calls of oneDNN that torch's compiler makes. They need no compiler."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__(backbone)
        layers = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        self._weights = {layer: _packed(layer) for layer in layers}

    def stem(self, layer: Any, images: Tensor) -> Tensor:
        return self.conv_relu(layer, images)

    def conv(self, layer: Any, x: Tensor) -> Tensor:
        return self._conv(layer, x, "none")

    def conv_relu(self, layer: Any, x: Tensor) -> Tensor:
        return self._conv(layer, x, "relu")

    def _conv(self, layer: Any, x: Tensor, then: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weights[layer], layer.bias,
            layer.padding, layer.stride, layer.dilation, layer.groups, then, [], "",
        )  # fmt: skip
        return y

    def conv_add_relu(self, layer: Any, x: Tensor, shortcut: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, x, self._weights[layer], layer.bias,
            layer.padding, layer.stride, layer.dilation, layer.groups, "add", 1.0, "relu", [], "",
        )  # fmt: skip
        return y


def _packed(layer: Any) -> Tensor:
    """Returns the weights as oneDNN computes with them: in bf16 7 % faster, as no call packs them.

    In fp32 they stay as they are: packed for no size of images, AVX2 computes 20 times slower.
    """
    if layer.weight.dtype == torch.float32:
        weight: Tensor = layer.weight
        return weight
    packed: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(
        layer.weight.to_mkldnn(), layer.padding, layer.stride, layer.dilation, layer.groups
    )
    return packed
