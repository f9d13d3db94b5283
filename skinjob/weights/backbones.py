"""The networks that can be fine-tuned, and what the package knows of each.

This module does not need torch, because the laptop that fetches the weights has none. To add a
network, add an entry to BACKBONES.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from skinjob.errors import WeightsError

COUNTER = "num_batches_tracked"  # files from before torch 0.4.1, as the published file, lack it


class Tensor(NamedTuple):
    """The type of a tensor, such as "float32", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a backbone; sizes in pixels.

    Training resizes to the size of the crop. It reads *mean* and *std* from the weights file.
    """

    resize: int  # the shorter side
    crop: int  # a centred square
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network: its published weights, its images, its features and its tensors."""

    name: str  # train.model.BUILDERS builds it
    title: str  # for people
    num_features: int  # the inputs of the last layer
    preprocessing: Preprocessing
    url: str
    sha256: str
    size_bytes: int
    licence: str
    body: Mapping[str, Tensor] = field(hash=False, repr=False)  # without the last layer
    head: str = "fc"  # the last layer, which is replaced
    num_classes: int = 1000  # of the published head: ImageNet's

    @property
    def file_name(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def head_tensors(self) -> dict[str, Tensor]:
        return {
            f"{self.head}.weight": Tensor("float32", (self.num_classes, self.num_features)),
            f"{self.head}.bias": Tensor("float32", (self.num_classes,)),
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, with the counters, in torchvision's order."""
        return {**self.body, **self.head_tensors}

    @property
    def num_bytes(self) -> int:
        """The size of all tensors in float32."""
        return sum(4 * math.prod(tensor.shape) for tensor in self.tensors.values())

    def check_tensors(self, tensors: Mapping[str, Tensor], where: str, fix: str) -> None:
        """Checks that *tensors* are those of this network; the counters may be missing.

        Raises: WeightsError, which begins with *where*.
        """
        expected = self.tensors
        problems = [
            f"{name} is missing ({tensor} expected)"
            for name, tensor in expected.items()
            if name not in tensors and not name.endswith(COUNTER)
        ]
        for name, tensor in tensors.items():
            if name not in expected:
                problems.append(f"{name} is not a tensor of it")
            elif tensor != expected[name]:
                problems.append(f"{name} is {tensor}, {expected[name]} expected")
        if problems:
            more = f" ({len(problems)} differences in total)" if len(problems) > 1 else ""
            raise WeightsError(f"{where}: not torchvision's {self.title}: {problems[0]}{more}", fix)


def resnet_body(num_blocks: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """Returns the tensors of a ResNet of basic blocks; *num_blocks* are those of each stage.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), with torchvision's
    names.
    """
    tensors, inputs = _convolution("conv1", "bn1", (64, 3, 7, 7)), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(num_blocks[stage]):
            part = f"layer{stage + 1}.{block}"
            tensors |= _convolution(f"{part}.conv1", f"{part}.bn1", (width, inputs, 3, 3))
            tensors |= _convolution(f"{part}.conv2", f"{part}.bn2", (width, width, 3, 3))
            if width != inputs:  # the shortcut changes its width too
                short = f"{part}.downsample"
                tensors |= _convolution(f"{short}.0", f"{short}.1", (width, inputs, 1, 1))
            inputs = width
    return tensors


def _convolution(name: str, norm: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Returns the tensors of a convolution, (out, in, height, width), and of its batch norm."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{name}.weight": Tensor("float32", shape),
        **{f"{norm}.{part}": Tensor("float32", shape[:1]) for part in parts},
        f"{norm}.{COUNTER}": Tensor("int64", ()),
    }


RESNET18 = Backbone(  # torchvision's ResNet18_Weights.IMAGENET1K_V1
    name="resnet18",
    title="ResNet18",
    num_features=512,
    preprocessing=Preprocessing(resize=256, crop=224),
    url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
    sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    size_bytes=46_830_571,
    licence="torchvision's code is BSD-3-Clause; these weights were trained on ImageNet, whose "
    "terms of access allow non-commercial research and education, and torchvision leaves it to "
    "each user to find out whether a use is allowed",
    body=resnet_body((2, 2, 2, 2)),
)
BACKBONES = {backbone.name: backbone for backbone in (RESNET18,)}
DEFAULT = RESNET18
