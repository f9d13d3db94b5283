"""The networks, built from a weights file and a seed: a frozen backbone, a new head, all layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skinjob.train.resnet import ResNet
from skinjob.weights.backbones import Backbone
from skinjob.weights.tensors import COUNTER

RESNETS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, (3, 4, 6, 3), has_bottlenecks=True),
}
"""The networks that are built without torchvision, from the number of classes."""


def shapes_of(backbone: Backbone, num_classes: int) -> nn.Module:
    """Returns the network with shapes alone, on torch's meta device: no numbers are drawn."""
    with torch.device("meta"):
        if backbone.needs_torchvision:
            return _torchvisions(backbone.name, num_classes)
        return RESNETS[backbone.name](num_classes)


def _torchvisions(name: str, num_classes: int) -> nn.Module:
    """Returns torchvision's network, without its random parts.

    Dropout and stochastic depth draw from a generator that other threads use too, so a resumed run
    of all layers would give other numbers. A frozen backbone does not use them.
    """
    from torchvision import models, ops  # takes seconds, of which a ResNet saves a job

    model: nn.Module = models.get_model(name, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, ops.StochasticDepth)):
            module.p = 0.0
    return model


def build_model(backbone: Backbone, weights: Path) -> nn.Module:
    """Returns the network with the weights of the file; nothing is downloaded or drawn."""
    model = shapes_of(backbone, backbone.num_classes)
    counters = [name for name, _ in model.named_buffers() if name.endswith(COUNTER)]
    # The published file lacks the counts of batches.
    tensors = {name: torch.zeros((), dtype=torch.int64) for name in counters} | load_file(weights)
    # Assigned: torch would import sympy, which takes 0.6 s, to give the shapes memory of their own.
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:  # `read_weights_info` refuses such a file earlier
        raise RuntimeError(
            f"{weights} does not fit {backbone.title}: missing {missing}, unexpected {unexpected}"
        )
    return model


def build_backbone(backbone: Backbone, weights: Path) -> nn.Module:
    """Returns the network without its last layer, (N, 3, S, S) -> (N, num_features), frozen.

    It is in eval mode. In train mode, batch norm would make the features depend on the batch size,
    which is what a sweep compares. As batch norm is constant, it is folded into the convolutions.
    """
    model = build_model(backbone, weights)
    model.set_submodule(backbone.head, nn.Identity())
    model.eval().requires_grad_(False)
    fold_batch_norm(model)
    # oneDNN and cuDNN compute in channels_last. Another layout is reordered around each layer.
    frozen: nn.Module = model.to(memory_format=torch.channels_last)
    return frozen


def fold_batch_norm(model: nn.Module) -> None:
    """Replaces each convolution and the batch norm after it by a single convolution, in place."""
    for module in list(model.modules()):
        for (name, layer), (norm_name, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, norm_name, nn.Identity())


def build_head(num_features: int, num_classes: int, seed: int) -> nn.Linear:
    """Returns a new last layer, (N, num_features) -> (N, num_classes), drawn from *seed* alone.

    It equals nn.Linear after torch.manual_seed(*seed*). The numbers come from a separate generator,
    because other threads may use torch's at the same time.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(num_features, num_classes, device="meta")  # skip_init would import sympy
    head.weight = nn.Parameter(torch.empty(num_classes, num_features))
    head.bias = nn.Parameter(torch.empty(num_classes))
    nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_features)
    nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    return head
