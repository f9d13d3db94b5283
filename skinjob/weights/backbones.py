"""The networks that can be fine-tuned, and what the package knows of each.

This module does not need torch, because the laptop that fetches the weights has none. To add a
network, add a row to BACKBONES and its name to config.ARCHS.

The weights are torchvision's IMAGENET1K_V1 of each network. V2 of ResNet50 was trained with label
smoothing, after which frozen features serve other classes less well; ConvNeXt-Tiny and ViT-B/16
have no weights that were trained without. A digest's first 8 digits are those in the URL.

Training scales images bilinearly to the size of the crop, whatever the network: that is the recipe,
and networks of the same size then share the decoded images. So it ignores `resize`, and the bicubic
interpolation of EfficientNet-B0.

Source: Kornblith et al., "Why Do Better Loss Functions Lead to Less Transferable Features?" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from skinjob.errors import WeightsError
from skinjob.weights.tensors import (
    COUNTER,
    Tensor,
    convnext_tiny,
    efficientnet_b0,
    resnet,
    vit_b_16,
)

LICENCE = (
    "torchvision's code is BSD-3-Clause; these weights were trained on ImageNet, whose terms of "
    "access allow non-commercial research and education, and torchvision leaves it to each user to "
    "find out whether a use is allowed"
)


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a backbone; sizes in pixels.

    Training resizes to the size of the crop. It reads *mean* and *std* from the weights file.
    """

    resize: int  # the shorter side
    crop: int  # a centred square
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Backbone:
    """A network: its published weights, its images, its features and its tensors."""

    name: str  # of the function in torchvision.models
    title: str  # for people
    num_features: int  # the inputs of the last layer
    preprocessing: Preprocessing
    url: str
    sha256: str
    size_bytes: int
    body: Mapping[str, Tensor] = field(hash=False, repr=False)  # without the last layer
    head: str = "fc"  # the last layer, which is replaced
    num_classes: int = 1000  # of the published head: ImageNet's
    licence: str = LICENCE
    needs_torchvision: bool = True  # else train.resnet builds it
    is_crop_fixed: bool = False  # it has weights for each place of the crop
    old_names: tuple[tuple[str, str], ...] = ()
    """Parts of names in the published file, and what torchvision calls them since."""

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

    def today(self, name: str) -> str:
        """Returns the name that torchvision gives today to a tensor of the published file."""
        for old, new in self.old_names:
            name = name.replace(old, new)
        return name

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


_URL = "https://download.pytorch.org/models/"
RESNET18 = Backbone(
    name="resnet18",
    title="ResNet18",
    num_features=512,
    preprocessing=Preprocessing(resize=256, crop=224),
    url=f"{_URL}resnet18-f37072fd.pth",
    sha256="f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    size_bytes=46_830_571,
    body=resnet((2, 2, 2, 2)),
    needs_torchvision=False,
)
OTHERS = (
    Backbone(
        name="resnet34",
        title="ResNet34",
        num_features=512,
        preprocessing=Preprocessing(resize=256, crop=224),
        url=f"{_URL}resnet34-b627a593.pth",
        sha256="b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
        size_bytes=87_319_819,
        body=resnet((3, 4, 6, 3)),
        needs_torchvision=False,
    ),
    Backbone(
        name="resnet50",
        title="ResNet50",
        num_features=2048,
        preprocessing=Preprocessing(resize=256, crop=224),
        url=f"{_URL}resnet50-0676ba61.pth",
        sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        size_bytes=102_530_333,
        body=resnet((3, 4, 6, 3), has_bottlenecks=True),
        needs_torchvision=False,
    ),
    Backbone(
        name="efficientnet_b0",
        title="EfficientNet-B0",
        num_features=1280,
        preprocessing=Preprocessing(resize=256, crop=224, interpolation="bicubic"),
        url=f"{_URL}efficientnet_b0_rwightman-7f5810bc.pth",
        sha256="7f5810bc96def8f7552d5b7e68d53c4786f81167d28291b21c0d90e1fca14934",
        size_bytes=21_444_401,
        body=efficientnet_b0(),
        head="classifier.1",
    ),
    Backbone(
        name="convnext_tiny",
        title="ConvNeXt-Tiny",
        num_features=768,
        preprocessing=Preprocessing(resize=236, crop=224),
        url=f"{_URL}convnext_tiny-983f1562.pth",
        sha256="983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d",
        size_bytes=114_419_221,
        body=convnext_tiny(),
        head="classifier.2",
    ),
    Backbone(
        name="vit_b_16",
        title="ViT-B/16",
        num_features=768,
        preprocessing=Preprocessing(resize=256, crop=224),
        url=f"{_URL}vit_b_16-c867db91.pth",
        sha256="c867db91d3e12c6cbadabb610d73c24a546bf82d8c03a9fea34f43a712ddb0e9",
        size_bytes=346_328_529,
        body=vit_b_16(),
        head="heads.head",
        is_crop_fixed=True,
        old_names=(("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.3.")),
    ),
)
DEFAULT = RESNET18
BACKBONES = {backbone.name: backbone for backbone in (DEFAULT, *OTHERS)}


def backbone_with(names: Collection[str]) -> Backbone | None:
    """Returns the network whose tensors have these names, with or without the counters."""
    plain = {name for name in names if not name.endswith(COUNTER)}
    for backbone in BACKBONES.values():
        if plain == {name for name in backbone.tensors if not name.endswith(COUNTER)}:
            return backbone
    return None
