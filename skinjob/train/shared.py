"""What the runs of a job share, and what the loop asks of inputs and networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from skinjob.config import TrainConfig
from skinjob.data.images import Split
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import SweepInfo
from skinjob.train.checkpoint import Checkpoint
from skinjob.train.device import Device
from skinjob.train.images import ImageSource
from skinjob.train.lease import Lease
from skinjob.weights.backbones import Backbone


@dataclass(frozen=True)
class Job:
    """Runs of the same sweep, and what they share."""

    configs: Mapping[Run, TrainConfig]
    info: SweepInfo
    """sweep.json."""
    lease: Lease
    checkpoints: Mapping[Run, Checkpoint]
    """The point from which each run continues."""
    device: Device
    source: ImageSource
    backbone: Backbone
    weights: Path

    @property
    def recipe(self) -> TrainConfig:
        """The config of a run, for the fields that all runs share."""
        return next(iter(self.configs.values()))

    @property
    def evaluated(self) -> list[Split]:
        """The splits that are evaluated after each epoch. Each has columns in metrics.csv."""
        return [split for split in (Split.VAL, Split.TEST) if self.source.files(split)]

    @property
    def trains_heads(self) -> bool:
        return self.recipe.train == "head"


class Inputs(Protocol):
    """The inputs of a network in a view: features for a head, images for all layers."""

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the inputs of each part, (B, ...) float32; a part is (B,) int64 positions."""


class Networks(Protocol):
    """The networks of R runs with the same batch size, which are updated together."""

    device: str
    stream: torch.cuda.Stream | None
    """Where on a GPU the kernels of these networks are queued."""
    batch_size: int
    """Inputs per forward pass in an evaluation."""

    def update(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Updates each network by its batch; returns the logits before, (R, B, num_classes).

        *inputs* (R * B, ...), *targets* (R, B) int64; *share* of the learning rate.
        """

    def logits(self, inputs: Tensor) -> Tensor:
        """Returns the logits of each network in evaluation, (R, B, num_classes)."""

    def states(self) -> list[dict[str, Any]]:
        """Returns what each network needs to continue exactly as without an interruption."""
