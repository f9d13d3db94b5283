"""A run on its course: its training, the epochs behind it, and what it writes of them."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from skinjob.config import TrainConfig
from skinjob.sweeps.layout import Run
from skinjob.train.checkpoint import Checkpoint, save_checkpoint
from skinjob.train.loop import Epoch
from skinjob.train.outputs import metrics_row


class Training(Protocol):
    """What is trained, a head or all layers: `HeadTraining`, `FullTraining`."""

    config: TrainConfig

    @property
    def trained(self) -> nn.Module: ...

    def test_logits(self) -> Tensor: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


T = TypeVar("T", bound=Training)


class Course(Generic[T]):
    """A run, from its checkpoint to its last epoch."""

    def __init__(self, run: Run, training: T, checkpoint: Checkpoint, precision: str) -> None:
        """Puts *training* where *checkpoint* left it, and metrics.csv with it."""
        self.run = run
        self.precision = precision
        self.training = training
        self.rows = [list(row) for row in checkpoint.rows]
        if checkpoint.epoch:
            training.restore(checkpoint.state)
        run.write_metrics(self.rows)

    @property
    def done(self) -> int:
        """Epochs that are finished and on disk."""
        return len(self.rows)

    def keep(self, epoch: Epoch) -> None:
        """Writes an epoch that was just finished: the checkpoint first, from which all follows."""
        self.rows.append(metrics_row(self.run, self.training.config, epoch))
        checkpoint = Checkpoint(self.rows, self.training.state(), self.precision)
        save_checkpoint(self.run, self.training.config, checkpoint)
        self.run.write_metrics(self.rows, is_durable=False)
