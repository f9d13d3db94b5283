"""Runs jobs in processes that are killed at a file operation, or find the disk full there.

The network is small, because tests of files run hundreds of jobs. The process, its SIGKILL and
everything else are real.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skinjob.train import all_layers, job, loop

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["killing"])  # torch is loaded once for all
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # where the server finds it

WRITING = ("os.rename", "os.remove", "os.mkdir", "os.truncate")
FULL = "disk full"
KILLED = "killed"


class SmallBackbone(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)[:, :512].contiguous()


class SmallResNet(nn.Module):
    """Has the kinds of layers that are trained in a ResNet18, one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 7, stride=16)
        self.bn = nn.BatchNorm2d(4)
        self.fc: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        seen = nn.functional.adaptive_avg_pool2d(self.bn(self.conv(images)), 16)
        return self.fc(seen.flatten(1)[:, :512])


def use_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains networks that take milliseconds, in this process."""

    def model(*_: object) -> SmallResNet:
        torch.manual_seed(0)
        return SmallResNet()

    monkeypatch.setattr(job, "build_backbone", lambda *_: SmallBackbone())
    monkeypatch.setattr(all_layers, "build_model", model)


def attempt(folders: Sequence[Path], stop_at: int | None, how: str = KILLED) -> tuple[int, int]:
    """Runs a job and stops it at its *stop_at*-th file operation, if it gets that far.

    Returns its exit code and the number of file operations that it began.
    """
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run, args=(list(map(str, folders)), stop_at, how, sender))
    process.start()
    sender.close()
    count = 0
    try:
        while True:
            count = receiver.recv()
    except EOFError:
        pass
    process.join()
    assert process.exitcode is not None
    return process.exitcode, count


def _run(folders: Sequence[str], stop_at: int | None, how: str, sender: Any) -> None:
    job.build_backbone = lambda *_: SmallBackbone()  # type: ignore[assignment]
    all_layers.build_model = lambda *_: _seeded(SmallResNet)  # type: ignore[assignment]
    loop.PAUSE_PER_WRITE = 0  # each epoch is written, which are more points
    _silence()
    operations = _Operations(stop_at, how)
    try:
        job.run_job([Path(folder) for folder in folders])
    except Exception:
        sys.exit(1)
    finally:
        sender.send(operations.count)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


class _Operations:
    """Counts the file operations of this process and stops it at the chosen number."""

    def __init__(self, stop_at: int | None, how: str) -> None:
        self.count = 0
        self.stop_at = stop_at
        self.how = how
        for name in ("fsync", "pwrite"):  # Python sends no audit event for these
            setattr(os, name, self._counted(getattr(os, name)))
        sys.addaudithook(self._audit)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._step()
            return function(*arguments)

        return counted

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITING or (event == "open" and _is_writing(*arguments)):
            self._step()

    def _step(self) -> None:
        self.count += 1
        if self.count == self.stop_at and self.how == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop_at is not None and self.count >= self.stop_at and self.how == FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_writing(path: Any, mode: str | None, flags: int) -> bool:
    return isinstance(path, (str, bytes)) and bool(flags & (os.O_WRONLY | os.O_RDWR))
