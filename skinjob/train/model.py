"""ResNet18, whole or in two parts: a frozen backbone and the head that is trained."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet, resnet18

NUM_FEATURES = 512


def build_resnet18(weights: Path) -> ResNet:
    """Returns ResNet18 with the weights of the local file; nothing is downloaded or drawn."""
    with torch.device("meta"):  # of shapes alone: all numbers come from the file
        model = resnet18(weights=None)
    model.to_empty(device="cpu")
    tensors = load_file(weights)
    for name, buffer in model.named_buffers():
        if name not in tensors:  # the counts of batches; torch keeps those of the model then
            buffer.zero_()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:  # `read_weights_info` has refused such a file before
        raise RuntimeError(
            f"{weights} does not fit ResNet18: missing {lacking}, unexpected {unexpected}"
        )
    return model


def build_backbone(weights: Path) -> nn.Module:
    """Returns ResNet18 without its last layer, (N, 3, S, S) -> (N, 512), frozen, on the CPU.

    In eval mode: batch norm in train mode would make the features depend on the batch size, which
    is what a sweep compares. Being constant, it is folded into the convolutions before it.
    """
    model = build_resnet18(weights)
    model.fc = nn.Identity()
    model.eval().requires_grad_(False)
    fold_batch_norm(model)
    # channels_last is the layout that oneDNN and cuDNN compute in: no reordering around each layer.
    backbone: nn.Module = model.to(memory_format=torch.channels_last)
    return backbone


def fold_batch_norm(model: ResNet) -> None:
    """Replaces each convolution and the batch norm behind it by one convolution, in place."""
    _fold(model, "conv1", "bn1")
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            _fold(block, "conv1", "bn1")
            _fold(block, "conv2", "bn2")
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    layer: nn.Conv2d = getattr(module, convolution)
    setattr(module, convolution, fuse_conv_bn_eval(layer, getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def build_head(num_classes: int, seed: int) -> nn.Linear:
    """Returns a new last layer, (N, 512) -> (N, num_classes) logits, drawn from *seed* alone.

    Its numbers are those of nn.Linear after torch.manual_seed(*seed*). They come from a generator
    of its own, because other threads may use torch's at the same time.
    """
    generator = torch.Generator().manual_seed(seed)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, NUM_FEATURES, num_classes)
    nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(NUM_FEATURES)
    nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    return head
