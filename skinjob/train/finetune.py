"""The training loop of all layers, from top to bottom."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skinjob.config import TrainConfig
from skinjob.train.device import Device
from skinjob.train.loop import Epoch, Tally, order, set_lr
from skinjob.train.model import build_head, build_resnet18
from skinjob.train.pixels import TEST, Pixels

AHEAD = 3  # batches made while the network is at one
TEST_BATCH = 64


class FullTraining:
    """ResNet18 with a new head and all its layers in training, an epoch at a time.

    With AdamW: pretrained layers want steps of one size, whatever the size of their gradients.
    Batch norm is in train mode, as fine-tuning has it: images that look unlike ImageNet get
    statistics of their own. So the batch size acts through batch norm too.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        weights: Path,
        device: Device,
        pixels: Pixels,
        num_classes: int,
        positive: int,
    ) -> None:
        self.config = config
        self.positive = positive  # the label of the class that metrics look for
        self.device = device
        self.pixels = pixels
        model = build_resnet18(weights)
        model.fc = build_head(num_classes, config.seed)
        self.model = model.to(device.type, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.updates = 0
        # Taken up again, a run has to end in the bytes that it would have ended in.
        torch.backends.cudnn.deterministic = True

    def epoch(self, number: int, tell: Callable[[int, int, int, float], None]) -> Epoch:
        """Trains on every image once, evaluates on the test images, and returns what it left.

        *tell* hears after each update of the epoch's number, its images done and in all, and the
        seconds since it began.

        Raises: RunError at the first loss that is not a number.
        """
        tally = Tally(number)
        config, labels = self.config, self.pixels.labels(number)  # (num_train,) int64
        num_updates = config.epochs * math.ceil(len(labels) / config.batch_size)
        parts = order(len(labels), config.seed, number).split(config.batch_size)
        self.model.train()
        for part, images in zip(parts, self._batches(number, parts), strict=True):
            wanted = labels[part].to(self.device.type)  # (B,)
            with self._autocast():
                logits = self.model(images).float()  # (B, num_classes)
            loss = functional.cross_entropy(logits, wanted)
            set_lr(self.optimizer, config, self.updates, num_updates)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.updates += 1
            tally.add(loss, logits, wanted, self.updates)
            tell(number, tally.num_images, len(labels), time.perf_counter() - tally.start)

        test_labels = self.pixels.labels(TEST)
        return tally.epoch(
            self.optimizer, self.updates, self.test_logits(), test_labels, self.positive
        )

    @property
    def trained(self) -> nn.Module:
        trained: nn.Module = self.model
        return trained

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs to go on as if nothing had happened."""
        return {
            "updates": self.updates,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def test_logits(self) -> Tensor:
        """Returns what the network says of all test images.

        (num_test, num_classes) float32 on the CPU.
        """
        self.model.eval()
        parts = torch.arange(len(self.pixels.files(TEST))).split(TEST_BATCH)
        with self._autocast():
            logits = [self.model(images).float().cpu() for images in self._batches(TEST, parts)]
        return torch.cat(logits)

    def _autocast(self) -> torch.autocast:
        is_mixed = self.device.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed)

    def _batches(self, view: int, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields (B, 3, S, S) float32 of each part, made in threads ahead of the network."""

        def make(part: Tensor) -> Tensor:
            return self.pixels.batch(view, part.tolist(), self.device.type)

        coming: deque[Future[Tensor]] = deque()
        # A thread each: the cores belong to the network, whose threads are others.
        with ThreadPoolExecutor(AHEAD, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for part in parts:
                    coming.append(pool.submit(make, part))
                    if len(coming) > AHEAD:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
