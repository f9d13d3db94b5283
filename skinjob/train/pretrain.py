"""A backbone for the demo, trained from scratch on drawn shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from skinjob.console import progress
from skinjob.data.shapes import KINDS, draw_shapes
from skinjob.train import transforms
from skinjob.train.device import usable_cpus
from skinjob.weights.backbones import DEFAULT, Preprocessing
from skinjob.weights.file import WeightsInfo, write_demo_weights

SIDE = 64  # pixels of a picture
NUM_PICTURES, EPOCHS, BATCH_SIZE, MOST_LR = 1600, 5, 32, 2e-3


def pretrain(
    path: Path, *, num_pictures: int | None = None, epochs: int | None = None, seed: int = 0
) -> WeightsInfo:
    """Makes *path* the weights of a network that tells drawn shapes apart, marked as the demo's.

    All random numbers come from *seed*; torch's global generator stays as it was.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    num_pictures, epochs = num_pictures or NUM_PICTURES, epochs or EPOCHS
    torch.set_num_threads(usable_cpus())
    preprocessing = Preprocessing(resize=SIDE, crop=SIDE)
    with progress("drawing shapes", 1):
        pictures, kinds = draw_shapes(num_pictures, SIDE, seed)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # (N, 3, S, S) uint8, channels_last
    generator = torch.Generator().manual_seed(seed)
    model = _new_model(generator)
    _train(
        model,
        transforms.normalise(images.float(), preprocessing),
        torch.from_numpy(kinds),
        epochs,
        generator,
    )
    source = f"pretrained by skinjob demo on {num_pictures} drawn shapes of {len(KINDS)} kinds"
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    backbone = replace(DEFAULT, preprocessing=preprocessing)
    return write_demo_weights(path, tensors, backbone, source)


def _new_model(generator: torch.Generator) -> nn.Module:
    """Returns a ResNet with its first values as torchvision draws them, but from *generator*."""
    with torch.device("meta"):
        model: nn.Module = get_model(DEFAULT.name, num_classes=len(KINDS))
    model.to_empty(device="cpu")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    head: nn.Linear = getattr(model, DEFAULT.head)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return model.to(memory_format=torch.channels_last)


def _train(
    model: nn.Module, images: Tensor, kinds: Tensor, epochs: int, generator: torch.Generator
) -> None:
    """Trains all layers: *images* (N, 3, S, S) float32, *kinds* (N,) int64."""
    num_updates = epochs * math.ceil(len(images) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=MOST_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MOST_LR, num_updates, pct_start=0.25)
    model.train()
    with progress(
        f"pretraining {DEFAULT.title} on drawn shapes", epochs * len(images), unit="pictures"
    ) as tell:
        for epoch in range(epochs):
            parts = torch.randperm(len(images), generator=generator).split(BATCH_SIZE)
            for number, part in enumerate(parts, 1):
                axes = [axis for axis in (2, 3) if torch.rand((), generator=generator) < 0.5]
                loss = functional.cross_entropy(model(images[part].flip(axes)), kinds[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                tell(epoch * len(images) + min(number * BATCH_SIZE, len(images)))
    model.eval()
