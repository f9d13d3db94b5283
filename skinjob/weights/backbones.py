"""What a ResNet18 is made of: its tensors by name, shape and type, and how it expects images.

Published by He et al., "Deep Residual Learning for Image Recognition" (2016), as torchvision
names its parts. Told without torch, for the laptop that fetches has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skinjob.errors import WeightsError

ARCHITECTURE = "resnet18"
NUM_CLASSES = 1000  # ImageNet's; the sweep's own head replaces this layer
COUNTER = "num_batches_tracked"  # saved since torch 0.4.1; the published file is older


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for the backbone, and must be again; sizes in pixels.

    Training resizes to the crop's size, as its recipe has it, and reads mean and std.
    """

    resize: int = 256  # the shorter side
    crop: int = 224  # a centred square
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


PREPROCESSING = Preprocessing()  # torchvision's ResNet18_Weights.IMAGENET1K_V1.transforms()


@dataclass(frozen=True)
class Tensor:
    """What is told of a tensor without its numbers: its type ("float32") and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def layout() -> dict[str, Tensor]:
    """Returns ResNet18's 122 tensors by name, in torchvision's order; 20 of them are counters."""
    tensors = _convolution("conv1", 64, 3, 7) | _batch_norm("bn1", 64)
    inputs = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            tensors |= _basic_block(f"layer{stage}.{block}", channels, inputs)
            inputs = channels
    tensors["fc.weight"] = Tensor("float32", (NUM_CLASSES, 512))
    tensors["fc.bias"] = Tensor("float32", (NUM_CLASSES,))
    return tensors


def check_layout(found: Mapping[str, Tensor], where: str, fix: str) -> None:
    """Changes nothing; raises WeightsError unless *found* is ResNet18, tensor for tensor.

    The counters `num_batches_tracked` may be absent: torchvision's own file has none of them.
    """
    expected = layout()
    faults = [
        f"{name} is missing ({wanted} expected)"
        for name, wanted in expected.items()
        if name not in found and not name.endswith(COUNTER)
    ]
    for name, tensor in found.items():
        if name not in expected:
            faults.append(f"{name} is no tensor of it")
        elif tensor != expected[name]:
            faults.append(f"{name} is {tensor}, {expected[name]} expected")
    if faults:
        more = f" ({len(faults)} differences in all)" if len(faults) > 1 else ""
        raise WeightsError(f"{where}: not torchvision's ResNet18: {faults[0]}{more}", fix)


def _basic_block(name: str, channels: int, inputs: int) -> dict[str, Tensor]:
    tensors = _convolution(f"{name}.conv1", channels, inputs, 3)
    tensors |= _batch_norm(f"{name}.bn1", channels)
    tensors |= _convolution(f"{name}.conv2", channels, channels, 3)
    tensors |= _batch_norm(f"{name}.bn2", channels)
    if channels != inputs:  # the shortcut must change its width too
        tensors |= _convolution(f"{name}.downsample.0", channels, inputs, 1)
        tensors |= _batch_norm(f"{name}.downsample.1", channels)
    return tensors


def _convolution(name: str, channels: int, inputs: int, kernel: int) -> dict[str, Tensor]:
    return {f"{name}.weight": Tensor("float32", (channels, inputs, kernel, kernel))}


def _batch_norm(name: str, channels: int) -> dict[str, Tensor]:
    parts = ("weight", "bias", "running_mean", "running_var")
    tensors = {f"{name}.{part}": Tensor("float32", (channels,)) for part in parts}
    return tensors | {f"{name}.{COUNTER}": Tensor("int64", ())}
