"""Heads side by side: each is a plain nn.Linear under Adadelta, whoever else is in its stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trees import left, make_sweep, make_tree

from skinjob.config import TrainConfig
from skinjob.errors import RunError
from skinjob.sweeps.layout import Sweep
from skinjob.train import loop
from skinjob.train.heads import Heads, new_state
from skinjob.train.job import run_job
from skinjob.train.loop import lr_share, order
from skinjob.train.model import build_head

NUM_FEATURES = 512


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Gives heads a single core, as a job does: with two, seven classes take other kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=9, num_test=4)


def drawn(num_images: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns features, (num_images, 512), that are as small and positive as ResNet18's; labels."""
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(num_images, NUM_FEATURES, generator=draws).abs()
    return features, torch.randint(0, num_classes, (num_images,), generator=draws)


def trained(
    seeds: Sequence[int], features: Tensor, labels: Tensor, batch_size: int, num_classes: int
) -> Heads:
    """Returns a stack after an epoch; the learning rate depends on the seed."""
    lrs = [0.01 * (1 + seed % 3) for seed in seeds]
    heads = [build_head(NUM_FEATURES, num_classes, seed) for seed in seeds]
    stack = Heads([new_state(head, lr) for head, lr in zip(heads, lrs, strict=True)], lrs)
    orders = torch.stack([order(len(labels), seed, 1) for seed in seeds])
    for part in orders.split(batch_size, dim=1):
        stack.update(features[part.flatten()], labels[part], 1.0)
    return stack


def same(one: Any, other: Any) -> bool:
    """Says whether two states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_stack_gives_the_numbers_of_plain_loops(schedule: str, num_classes: int) -> None:
    """To 1e-6, over three epochs; torch.optim.Adadelta can continue from the state of each head."""
    features, labels = drawn(100, num_classes)
    seeds, lrs, batch_size = (0, 1, 2), (0.01, 0.1, 1.0), 32
    config = TrainConfig(data="d", weights="w", batch_size=batch_size, schedule=schedule)
    plain = [build_head(NUM_FEATURES, num_classes, seed) for seed in seeds]
    adadeltas = [
        torch.optim.Adadelta(head.parameters(), lr=lr) for head, lr in zip(plain, lrs, strict=True)
    ]
    stack = Heads([new_state(head, lr) for head, lr in zip(plain, lrs, strict=True)], lrs)
    for update in range(3 * 4):
        epoch, number = divmod(update, 4)
        orders = torch.stack([order(100, seed, epoch) for seed in seeds])
        part, share = orders.split(batch_size, dim=1)[number], lr_share(config, update, 12)
        logits = stack.update(features[part.flatten()], labels[part], share)
        for head, adadelta, mine, lr, own in zip(plain, adadeltas, part, lrs, logits, strict=True):
            adadelta.param_groups[0]["lr"] = lr * share
            wanted = head(features[mine])
            torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)
            adadelta.zero_grad()
            functional.cross_entropy(wanted, labels[mine]).backward()
            adadelta.step()
    tests = stack.logits(features)
    for number, (head, adadelta, state) in enumerate(
        zip(plain, adadeltas, stack.states(), strict=True)
    ):
        loaded = nn.Linear(NUM_FEATURES, num_classes)
        loaded.load_state_dict(state["head"])
        other = torch.optim.Adadelta(loaded.parameters())
        other.load_state_dict(state["optimizer"])
        other.param_groups[0]["lr"] = adadelta.param_groups[0]["lr"]
        assert other.state_dict()["param_groups"] == adadelta.state_dict()["param_groups"]
        for mine, wanted in zip(
            [*loaded.parameters(), *other.state.values()],
            [*head.parameters(), *adadelta.state.values()],
            strict=True,
        ):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tests[number], head(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 32, 256])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_a_head_is_the_same_to_the_last_bit_in_any_stack(batch_size: int, num_classes: int) -> None:
    """A run gives equal bytes alone, with others, and taken up again with fewer.

    The last batch has a single image. The kernels of the CPU at hand must hold this.
    """
    features, labels = drawn(2 * max(batch_size, 32) + 1, num_classes)
    for num_heads in (2, 5, 16):
        seeds = range(num_heads)
        stack = trained(seeds, features, labels, batch_size, num_classes)
        states, logits = stack.states(), stack.logits(features)
        for seed in (0, num_heads // 2, num_heads - 1):
            alone = trained([seed], features, labels, batch_size, num_classes)
            assert same(alone.states()[0], states[seed])
            assert torch.equal(alone.logits(features)[0], logits[seed])
            assert torch.equal(alone.logits(features[:1])[0], stack.logits(features[:1])[seed])


def test_a_run_that_leaves_its_stack_changes_no_bit_of_the_others(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has no number for its loss, another is taken by another process; two go on."""
    lrs = (0.1, 0.2, 0.3, 1e38)
    apart = make_sweep(data, weights, tmp_path / "apart", lrs=(0.1, 0.3), batch_sizes=[8], epochs=4)
    for run in apart.runs():
        run_job([run.folder])
    together = make_sweep(data, weights, tmp_path / "runs", lrs=lrs, batch_sizes=[8], epochs=4)
    first, taken, last, failing = together.runs()
    train_epoch = loop.train_epoch

    def watched(stack: Sequence[object], networks: object, epoch: int, *inputs: Any) -> object:
        if epoch == 3:
            taken.update_state(holder="another")
        return train_epoch(stack, networks, epoch, *inputs)

    monkeypatch.setattr(loop, "train_epoch", watched)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at update \d+, in epoch \d+"):
        run_job([run.folder for run in together.runs()])
    assert [left(run) for run in (first, last)] == [left(run) for run in apart.runs()]
    assert failing.state().status == "failed"
    assert (taken.state().status, taken.state().holder) == ("running", "another")
    assert not taken.trained_file("head").exists()


def test_a_run_that_continues_joins_the_stack_at_its_epoch(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed after two epochs meets new runs in the third; all end as if alone."""
    seeds = (0, 1, 2)
    apart = make_sweep(data, weights, tmp_path / "apart", seeds=seeds, batch_sizes=[8], epochs=4)
    run_job([run.folder for run in apart.runs()])
    sweep = make_sweep(data, weights, tmp_path / "runs", seeds=seeds, batch_sizes=[8], epochs=4)
    sizes: list[tuple[int, int]] = []
    train_epoch = loop.train_epoch

    def watched(stack: Sequence[object], networks: object, epoch: int, *inputs: Any) -> object:
        sizes.append((epoch, len(stack)))
        if sizes == [(1, 1), (2, 1), (3, 1)]:
            raise KeyboardInterrupt
        return train_epoch(stack, networks, epoch, *inputs)

    monkeypatch.setattr(loop, "train_epoch", watched)
    with pytest.raises(KeyboardInterrupt):
        run_job([sweep.runs()[1].folder])
    run_job([run.folder for run in sweep.runs()])
    assert sizes[3:] == [(1, 2), (2, 2), (3, 3), (4, 3)]
    assert [left(run) for run in sweep.runs()] == [left(run) for run in apart.runs()]


def test_a_large_stack_is_split_by_the_size_of_its_inputs(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of other batch sizes, and those beyond the limit, have stacks of their own."""
    sizes = []
    monkeypatch.setattr(loop, "MOST_INPUT_BYTES", 3 * 4 * 512 * 8)
    monkeypatch.setattr(loop, "Heads", watching(sizes))
    sweep: Sweep = make_sweep(
        data, weights, tmp_path, seeds=range(4), batch_sizes=(8, 16), epochs=1
    )
    run_job([run.folder for run in sweep.runs()])
    assert sizes == [3, 1, 1, 1, 1, 1]


def watching(sizes: list[int]) -> Any:
    """Returns a maker of Heads that notes how many there are."""

    def make(states: Sequence[Any], lrs: Sequence[float]) -> Heads:
        sizes.append(len(states))
        return Heads(states, lrs)

    return make
