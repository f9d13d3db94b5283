"""The networks: a frozen backbone, a new head, and a network of which all layers are trained."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model

from skinjob.config import TrainConfig
from skinjob.train.device import Device
from skinjob.weights.backbones import COUNTER, Backbone


@dataclass
class Network:
    """A head or all layers in training, with the optimizer and the number of updates."""

    part: str
    """head or model: its name in checkpoints and in the name of its file."""
    module: nn.Module
    optimizer: torch.optim.Optimizer
    device: str
    batch_size: int
    """Inputs per forward pass in an evaluation."""
    is_mixed: bool = False
    """Whether the layers compute in bf16; the weights stay float32."""
    updates: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns the logits, (B, num_classes) float32."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_mixed):
            logits: Tensor = self.module(inputs)
        return logits.float()

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs to continue exactly as without an interruption."""
        return {
            "updates": self.updates,
            self.part: self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.module.load_state_dict(state[self.part])
        self.optimizer.load_state_dict(state["optimizer"])


def new_network(
    config: TrainConfig, backbone: Backbone, weights: Path, num_classes: int, device: Device
) -> Network:
    """Returns the network that *config* trains, before its first update.

    A head is trained with Adadelta and always on the CPU: an update takes microseconds, and equal
    features give equal numbers on every machine.

    All layers are trained with AdamW, because the updates of pretrained layers should not depend on
    the size of their gradients. Batch norm is in train mode, as usual in fine-tuning, because the
    images differ from ImageNet's. So the batch size also has an effect through batch norm.
    """
    head = build_head(backbone.num_features, num_classes, config.seed)
    if config.train == "head":
        adadelta = torch.optim.Adadelta(head.parameters(), lr=config.lr)
        return Network("head", head, adadelta, "cpu", batch_size=4096)
    model = build_model(backbone, weights)
    setattr(model, backbone.head, head)
    model = model.to(device.type).to(memory_format=torch.channels_last)
    torch.backends.cudnn.deterministic = True  # a resumed run gives the same bytes
    adamw = torch.optim.AdamW(model.parameters(), lr=config.lr)
    is_mixed = device.precision == "bf16"
    return Network("model", model, adamw, device.type, batch_size=64, is_mixed=is_mixed)


def build_model(backbone: Backbone, weights: Path) -> nn.Module:
    """Returns the network with the weights of the file; nothing is downloaded or drawn."""
    with torch.device("meta"):  # only shapes: all numbers come from the file
        model: nn.Module = get_model(backbone.name, weights=None)
    model.to_empty(device="cpu")
    tensors = load_file(weights)
    for name, buffer in model.named_buffers():
        if name not in tensors:  # counts of batches, which the published file lacks
            buffer.zero_()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith(COUNTER)]
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
    setattr(model, backbone.head, nn.Identity())
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
    head: nn.Linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)
    nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_features)
    nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    return head
