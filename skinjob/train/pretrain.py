"""A backbone for the demo, trained from scratch on drawn shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skinjob.console import progress
from skinjob.data.shapes import KINDS, draw_shape
from skinjob.train import transforms
from skinjob.train.model import shapes_of
from skinjob.weights.backbones import DEFAULT, Preprocessing
from skinjob.weights.file import WeightsInfo, write_demo_weights

SIDE = 48  # pixels of a picture
NUM_UPDATES, BATCH_SIZE, MAX_LR = 150, 32, 2e-3
NUM_THREADS = 1  # the same numbers on any number of cores: sums over threads round differently


def pretrain(path: Path, *, num_updates: int = NUM_UPDATES, seed: int = 0) -> WeightsInfo:
    """Writes weights for the demo to *path*, of a network that classifies drawn shapes.

    Every update draws new pictures. All random numbers come from *seed*; torch's global generator
    is not used. Computes in bf16 if the CPU has AMX.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    is_bf16 = torch.cpu._is_amx_tile_supported()  # on other CPUs, bf16 may be slower than fp32
    torch.set_num_threads(NUM_THREADS)
    preprocessing = Preprocessing(resize=SIDE, crop=SIDE)
    rng = np.random.default_rng(seed)
    model = _new_model(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), MAX_LR, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, num_updates, pct_start=0.25)
    num_pictures = num_updates * BATCH_SIZE
    label = f"pretraining {DEFAULT.title} on drawn shapes"
    with progress(label, num_pictures, unit="pictures") as report:
        for update in range(num_updates):
            kinds = rng.permutation(BATCH_SIZE) % len(KINDS)  # (B,) int64
            pictures = np.stack([draw_shape(rng, kind, SIDE) for kind in kinds])  # (B, S, S, 3)
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()  # (B, 3, S, S)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                logits = model(transforms.normalise(images, preprocessing))  # (B, kinds)
            loss = functional.cross_entropy(logits.float(), torch.from_numpy(kinds))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report((update + 1) * BATCH_SIZE)
    source = f"pretrained by skinjob demo on {num_pictures} drawn shapes of {len(KINDS)} kinds"
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return write_demo_weights(path, tensors, replace(DEFAULT, preprocessing=preprocessing), source)


def _new_model(generator: torch.Generator) -> nn.Module:
    """Returns a ResNet with initial values as in torchvision, but drawn from *generator*."""
    model = shapes_of(DEFAULT, len(KINDS)).to_empty(device="cpu")
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
    # The convolutions of the last stage are not trained. They are three quarters of all numbers,
    # and training them takes half of the time.
    for parameter in model.get_submodule("layer4").parameters():
        parameter.requires_grad_(parameter.dim() == 1)
    return model.train().to(memory_format=torch.channels_last)
