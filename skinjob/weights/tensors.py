"""The names, types and shapes of a network's tensors, all but those of its last layer.

The laptop that fetches the weights has no torch to build the network with. Names are torchvision's;
a test compares every tensor with torchvision's.
"""

from __future__ import annotations

from typing import NamedTuple

COUNTER = "num_batches_tracked"  # files from before torch 0.4.1, as the published ResNets, lack it


class Tensor(NamedTuple):
    """The type of a tensor, such as "float32", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


Tensors = dict[str, Tensor]


def resnet(num_blocks: tuple[int, int, int, int], *, has_bottlenecks: bool = False) -> Tensors:
    """Returns the tensors of a ResNet; *num_blocks* are those of each stage.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016).
    """
    tensors, inputs = _convolution("conv1", "bn1", (64, 3, 7, 7)), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        outputs = 4 * width if has_bottlenecks else width
        for block in range(num_blocks[stage]):
            part = f"layer{stage + 1}.{block}"
            if has_bottlenecks:
                shapes = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            else:
                shapes = [(width, inputs, 3, 3), (width, width, 3, 3)]
            for number, shape in enumerate(shapes, 1):
                tensors |= _convolution(f"{part}.conv{number}", f"{part}.bn{number}", shape)
            if outputs != inputs:  # the shortcut changes its width too
                short = f"{part}.downsample"
                tensors |= _convolution(f"{short}.0", f"{short}.1", (outputs, inputs, 1, 1))
            inputs = outputs
    return tensors


def efficientnet_b0() -> Tensors:
    """Returns the tensors of EfficientNet-B0.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling" (2019), table 1.
    """
    # of each stage: expansion, kernel, outputs, blocks
    stages = (
        *((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3)),
        *((6, 5, 192, 4), (6, 3, 320, 1)),
    )
    tensors, inputs = _normed("features.0", (32, 3, 3, 3)), 32
    for stage, (expansion, kernel, outputs, num_blocks) in enumerate(stages, 1):
        for block in range(num_blocks):
            part, width, squeezed = (
                f"features.{stage}.{block}.block",
                expansion * inputs,
                inputs // 4,
            )
            first = 0  # the position of the depthwise convolution
            if expansion > 1:
                tensors |= _normed(f"{part}.0", (width, inputs, 1, 1))
                first = 1
            tensors |= _normed(f"{part}.{first}", (width, 1, kernel, kernel))
            tensors |= _layer(f"{part}.{first + 1}.fc1", (squeezed, width, 1, 1))
            tensors |= _layer(f"{part}.{first + 1}.fc2", (width, squeezed, 1, 1))
            tensors |= _normed(f"{part}.{first + 2}", (outputs, width, 1, 1))
            inputs = outputs
    return tensors | _normed("features.8", (1280, inputs, 1, 1))


def convnext_tiny() -> Tensors:
    """Returns the tensors of ConvNeXt-Tiny.

    Source: Liu et al., "A ConvNet for the 2020s" (2022).
    """
    widths, num_blocks = (96, 192, 384, 768), (3, 3, 9, 3)
    tensors = _layer("features.0.0", (96, 3, 4, 4)) | _layer("features.0.1", (96,))
    for stage, width in enumerate(widths):
        if stage:
            before, part = widths[stage - 1], f"features.{2 * stage}"
            tensors |= _layer(f"{part}.0", (before,)) | _layer(f"{part}.1", (width, before, 2, 2))
        for block in range(num_blocks[stage]):
            part = f"features.{2 * stage + 1}.{block}"
            tensors[f"{part}.layer_scale"] = Tensor("float32", (width, 1, 1))
            tensors |= _layer(f"{part}.block.0", (width, 1, 7, 7))
            tensors |= _layer(f"{part}.block.2", (width,))
            tensors |= _layer(f"{part}.block.3", (4 * width, width))
            tensors |= _layer(f"{part}.block.5", (width, 4 * width))
    return tensors | _layer("classifier.0", (widths[-1],))


def vit_b_16() -> Tensors:
    """Returns the tensors of ViT-B/16 for 14 x 14 patches and a class token.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021).
    """
    width, mlp_width = 768, 3072
    tensors = {"class_token": Tensor("float32", (1, 1, width))}
    tensors |= _layer("conv_proj", (width, 3, 16, 16))
    tensors["encoder.pos_embedding"] = Tensor("float32", (1, 1 + 14 * 14, width))
    for layer in range(12):
        part = f"encoder.layers.encoder_layer_{layer}"
        tensors |= _layer(f"{part}.ln_1", (width,))
        # queries, keys and values; the names have an underscore here
        tensors[f"{part}.self_attention.in_proj_weight"] = Tensor("float32", (3 * width, width))
        tensors[f"{part}.self_attention.in_proj_bias"] = Tensor("float32", (3 * width,))
        tensors |= _layer(f"{part}.self_attention.out_proj", (width, width))
        tensors |= _layer(f"{part}.ln_2", (width,))
        tensors |= _layer(f"{part}.mlp.0", (mlp_width, width))
        tensors |= _layer(f"{part}.mlp.3", (width, mlp_width))
    return tensors | _layer("encoder.ln", (width,))


def _layer(name: str, shape: tuple[int, ...]) -> Tensors:
    """Returns the weight, (out, ...), and the bias of a layer."""
    return {
        f"{name}.weight": Tensor("float32", shape),
        f"{name}.bias": Tensor("float32", shape[:1]),
    }


def _convolution(name: str, norm: str, shape: tuple[int, ...]) -> Tensors:
    """Returns the tensors of a convolution, (out, in, height, width), and of its batch norm."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{name}.weight": Tensor("float32", shape),
        **{f"{norm}.{part}": Tensor("float32", shape[:1]) for part in parts},
        f"{norm}.{COUNTER}": Tensor("int64", ()),
    }


def _normed(name: str, shape: tuple[int, ...]) -> Tensors:
    """Returns the tensors of a convolution and its batch norm where both are parts of *name*."""
    return _convolution(f"{name}.0", f"{name}.1", shape)
