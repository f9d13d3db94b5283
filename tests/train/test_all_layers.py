"""All layers: the update is AdamW's, and it is the same when it is captured or takes turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from trees import left, make_sweep, make_tree

from skinjob.config import TrainConfig
from skinjob.train import all_layers, job, loop
from skinjob.train.all_layers import AllLayers, num_at_once
from skinjob.train.device import Device, choose_device
from skinjob.train.job import run_job
from skinjob.weights.backbones import DEFAULT

SHAPE = torch.Size((4, 3, 16, 16))


class Small(nn.Module):
    """Has what is trained of a ResNet18, with a last layer to be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 512, 1)
        self.fc: nn.Module = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.bn(self.conv(images)).relu().mean(dim=(2, 3), keepdim=True)
        return self.fc(self.last(seen).flatten(1))


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> Small:
        torch.manual_seed(0)
        return Small()

    monkeypatch.setattr(all_layers, "build_model", build)


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU do what a GPU does: warm up, capture, replay, and take turns."""

    def capture(update: Callable[[], None]) -> Callable[[], None]:
        for _ in range(4):
            update()
        return update

    make = AllLayers.__init__

    def make_captured(networks: AllLayers, config: TrainConfig, *others: Any) -> None:
        make(networks, config, *others)
        networks.stream = config.seed  # type: ignore[assignment]
        networks._capture(torch.Size((config.batch_size, 3, others[-1], others[-1])))

    monkeypatch.setattr(all_layers, "capture", capture)
    monkeypatch.setattr(AllLayers, "__init__", make_captured)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())


def new_network(lr: float = 0.01) -> AllLayers:
    config = TrainConfig(data="d", weights="w", batch_size=SHAPE[0], train="all", lr=lr)
    return AllLayers(config, DEFAULT, Path("w"), 2, choose_device("cpu", "fp32"), SHAPE[-1])


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(SHAPE, generator=draws), torch.randint(0, 2, (1, 4), generator=draws))
        for _ in range(count)
    ]


def test_an_update_is_that_of_adamw() -> None:
    """To 1e-6, with a schedule; torch.optim.AdamW can continue from the state."""
    network, module = new_network(), new_network()._module
    adamw = torch.optim.AdamW(module.parameters(), lr=0.01)
    for number, (images, targets) in enumerate(batches(6)):
        share = 1 - number / 6
        adamw.param_groups[0]["lr"] = 0.01 * share
        wanted = module(images)
        adamw.zero_grad()
        functional.cross_entropy(wanted, targets[0]).backward()
        adamw.step()
        logits = network.update(images, targets, share)
        torch.testing.assert_close(logits[0], wanted.detach(), rtol=1e-5, atol=1e-6)
    (state,) = network.states()
    other = torch.optim.AdamW(new_network()._module.parameters())
    other.load_state_dict(state["optimizer"])
    assert state["model"].keys() == module.state_dict().keys()
    for mine, theirs in zip(other.state.values(), adamw.state.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-6)


def test_a_network_continues_from_a_checkpoint_of_torchs_adamw() -> None:
    """Runs that an older skinjob has begun go on."""
    module = new_network()._module
    adamw = torch.optim.AdamW(module.parameters(), lr=0.01)
    (images, targets), (next_images, next_targets) = batches(2)
    for number in range(2):
        adamw.zero_grad()
        functional.cross_entropy(module(images), targets[0]).backward()
        if number == 0:
            adamw.step()
            saved = {"updates": 1, "model": module.state_dict(), "optimizer": adamw.state_dict()}
            network = new_network()
            network.restore(saved)
            images, targets = next_images, next_targets
    adamw.step()
    network.update(next_images, next_targets, 1.0)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(network.states()[0]["model"][name], value, rtol=1e-4, atol=1e-6)


def test_what_is_captured_gives_the_bits_of_what_is_not(no_graphs: None) -> None:
    """The warm-up leaves no trace; a batch that is smaller, and a restored state, are no matter."""
    captured, plain = new_network(), new_network()
    plain._replay = None
    given = [*batches(3), (batches(1)[0][0][:2], batches(1)[0][1][:, :2]), *batches(2)]
    for number, (images, targets) in enumerate(given):
        if number == 2:
            captured.restore(plain.states()[0])
        logits = [network.update(images, targets, 0.5) for network in (captured, plain)]
        assert torch.equal(*logits)
    assert torch.equal(captured.logits(given[0][0]), plain.logits(given[0][0]))
    (mine,), (wanted,) = captured.states(), plain.states()
    assert mine["updates"] == wanted["updates"] == 6
    for name, value in wanted["model"].items():
        assert torch.equal(mine["model"][name], value), name
    for number, averages in wanted["optimizer"]["state"].items():
        for name, value in averages.items():
            assert torch.equal(mine["optimizer"]["state"][number][name], value), name


def test_runs_that_take_turns_end_as_if_alone(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, no_graphs: None
) -> None:
    """One of three begins later, and another has no number for its loss; updates alternate."""
    data = make_tree(tmp_path / "skin_cancer", num_train=5, num_test=2)
    options = {"batch_sizes": [4], "train": "all", "epochs": 3, "schedule": "cosine"}
    apart = make_sweep(data, weights, tmp_path / "a", seeds=(0, 1), lrs=(0.01,), **options)
    for run in apart.runs():
        run_job([run.folder])
    sweep = make_sweep(data, weights, tmp_path / "b", seeds=(0, 1), lrs=(0.01, 1e30), **options)
    runs = {run.name: run for run in sweep.runs()}
    good = [runs[run.name] for run in apart.runs()]
    bad = runs["bs0004-lr1e+30-seed0"]
    stop_after_an_epoch(good[1].folder, monkeypatch)
    turns: list[int] = []
    monkeypatch.setattr(job, "num_at_once", lambda *_: 3)
    monkeypatch.setattr(
        torch.cuda, "stream", lambda seed: turns.append(seed) or contextlib.nullcontext()
    )
    with pytest.raises(Exception, match="the loss is"):
        run_job([run.folder for run in (*good, bad)])
    assert [left(run) for run in good] == [left(run) for run in apart.runs()]
    assert bad.state().status == "failed"
    assert turns[-6:-2] == [0, 1, 0, 1]  # both updated, and updated again


def stop_after_an_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a run as a Ctrl-C in its second epoch does."""
    train_epoch = loop.train_epoch

    def first_alone(stack: object, networks: object, epoch: int, *inputs: Any) -> object:
        if epoch > 1:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", first_alone)
        with pytest.raises(KeyboardInterrupt):
            run_job([folder])


def test_small_batches_share_a_gpu() -> None:
    """128 images at a time, at most four runs; a CPU trains a single run."""
    cpu = choose_device("cpu", "fp32")
    gpu = Device(
        type="cuda", precision="bf16", device_reason="", precision_reason="", num_threads=4
    )
    assert [num_at_once(gpu, size) for size in (8, 32, 64, 128, 256)] == [4, 4, 2, 1, 1]
    assert num_at_once(cpu, 8) == 1
