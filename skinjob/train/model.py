"""ResNet18 in two parts: a frozen backbone and the head that is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

NUM_FEATURES = 512


def build_backbone(weights: Path) -> nn.Module:
    """Returns ResNet18 without its last layer, (N, 3, 224, 224) -> (N, 512), frozen, on the CPU.

    In eval mode: batch norm in train mode would make the features depend on the batch size, which
    is what a sweep compares. The weights come from the local file; nothing is downloaded.
    """
    model = resnet18(weights=None)
    tensors = load_file(weights)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:  # `read_weights_info` has refused such a file before
        raise RuntimeError(
            f"{weights} does not fit ResNet18: missing {lacking}, unexpected {unexpected}"
        )
    model.fc = nn.Identity()
    model.requires_grad_(False)
    # channels_last is the layout that oneDNN and cuDNN compute in: no reordering around each layer.
    backbone: nn.Module = model.eval().to(memory_format=torch.channels_last)
    return backbone


def build_head(num_classes: int, seed: int) -> nn.Linear:
    """Returns a new last layer, (N, 512) -> (N, num_classes) logits, drawn from *seed* alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(NUM_FEATURES, num_classes)
