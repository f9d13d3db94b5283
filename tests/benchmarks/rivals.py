"""What skinjob is measured against: training loops as one would write them without it.

`plain`: the loop of a tutorial. The images through the whole net in train mode, autograd through
all of it, and only the last layer in the optimizer; or all layers, with trained="all".

`expert`: the loop of somebody who knows that the backbone is frozen: no autograd through it, eval
mode, channels_last, bf16 where the CPU has AMX, workers that stay. Each batch size is still a
training of its own, which puts every image through the backbone in every epoch.

Both take the test set through the net in every epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet, resnet18

NUM_WORKERS = 2
OPTIMIZERS = {
    "head": partial(torch.optim.Adadelta, lr=0.01),
    "all": partial(torch.optim.AdamW, lr=0.0003),
}
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAIN = transforms.Compose(
    [
        transforms.Resize(224),
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        NORMALIZE,
    ]
)
TEST = transforms.Compose(
    [transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE]
)

Update = Callable[[Tensor, Tensor], None]
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one epoch took: seconds and images, of the training and of the test."""

    train_s: float
    num_train: int
    test_s: float
    num_test: int
    test_accuracy: float

    def seconds_for(self, num_train: int, num_test: int) -> float:
        """Returns the seconds of an epoch of so many images at the same rates."""
        return num_train * self.train_s / self.num_train + num_test * self.test_s / self.num_test


def plain(data: Path, weights: Path, batch_size: int, trained: str = "head") -> Iterator[Epoch]:
    """Yields epoch after epoch of a tutorial's loop; *trained* is head or all."""
    model = pretrained(weights)
    model.fc = nn.Linear(512, num_classes(data))
    parameters = model.fc.parameters() if trained == "head" else model.parameters()
    optimizer = OPTIMIZERS[trained](parameters)

    def update(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    train, test = loaders(data, batch_size, persistent=False)
    while True:
        model.train()
        train_s = train_epoch(train, update)
        model.eval()
        yield tested(train_s, train, test, model)


def expert(data: Path, weights: Path, batch_size: int) -> Iterator[Epoch]:
    """Yields epoch after epoch of a loop that knows the backbone to be frozen."""
    backbone = pretrained(weights).eval().requires_grad_(False)
    backbone.fc = nn.Identity()
    backbone.to(memory_format=torch.channels_last)
    head = nn.Linear(512, num_classes(data))
    optimizer = OPTIMIZERS["head"](head.parameters())

    def features(images: Tensor) -> Tensor:
        with torch.no_grad(), fast_arithmetic():
            found: Tensor = backbone(images.to(memory_format=torch.channels_last))
        return found.float()  # (N, 512)

    def update(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(head(features(images)), labels).backward()
        optimizer.step()

    train, test = loaders(data, batch_size, persistent=True)
    while True:
        train_s = train_epoch(train, update)
        yield tested(train_s, train, test, lambda images: head(features(images)))


def pretrained(weights: Path) -> ResNet:
    """Returns ResNet18 with the weights of a safetensors file, in train mode."""
    model = resnet18(weights=None)
    model.load_state_dict(load_file(weights), strict=False)  # counters of batches may be missing
    return model


def num_classes(data: Path) -> int:
    """Returns the number of class folders."""
    return sum(folder.is_dir() for folder in (data / "train").iterdir())


def loaders(data: Path, batch_size: int, *, persistent: bool) -> tuple[DataLoader, DataLoader]:
    """Returns the loaders of the training and of the test images."""
    train, test = ImageFolder(data / "train", TRAIN), ImageFolder(data / "test", TEST)
    common = {
        "batch_size": batch_size,
        "num_workers": NUM_WORKERS,
        "persistent_workers": persistent,
    }
    found = DataLoader(train, shuffle=True, **common), DataLoader(test, **common)
    if persistent:
        for loader in found:
            next(iter(loader))  # the workers start now, once, and not in the first epoch
    return found


def train_epoch(loader: DataLoader, update: Update) -> float:
    """Returns the seconds of one pass over the training images, an update a batch."""
    start = time.perf_counter()
    for images, labels in loader:
        update(images, labels)
    return time.perf_counter() - start


@torch.no_grad()
def tested(train_s: float, train: DataLoader, test: DataLoader, predict: Predict) -> Epoch:
    """Returns the epoch, having put the test images through the net."""
    start, num_correct = time.perf_counter(), 0
    for images, labels in test:
        num_correct += int((predict(images).argmax(dim=1) == labels).sum())
    test_s = time.perf_counter() - start
    num_train, num_test = len(train.dataset), len(test.dataset)
    return Epoch(train_s, num_train, test_s, num_test, num_correct / num_test)


def fast_arithmetic() -> contextlib.AbstractContextManager[object]:
    """Returns bf16 autocast on a CPU with AMX, and nothing on others: there bf16 is slower."""
    if has_amx():
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def has_amx() -> bool:
    """Returns whether this CPU has AMX's bf16 units."""
    return torch.cpu._is_amx_tile_supported()
