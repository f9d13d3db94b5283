"""Networks are built from a file and a seed, whatever else in the process draws numbers."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from trees import make_sweep, make_tree

from skinjob.train.job import run_job
from skinjob.train.model import build_head, build_model
from skinjob.weights.backbones import DEFAULT


def test_a_head_depends_on_its_seed_alone() -> None:
    """A seed gives the numbers it always gave, though another thread draws from torch's own."""
    wanted = {}
    for seed in range(100):
        torch.manual_seed(seed)
        wanted[seed] = nn.Linear(512, 3).state_dict()
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            torch.manual_seed(0)
            torch.rand(10)

    thread = threading.Thread(target=disturb)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        heads = {seed: build_head(512, 3, seed).state_dict() for seed in wanted}
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    for seed, head in heads.items():
        assert torch.equal(head["weight"], wanted[seed]["weight"])
        assert torch.equal(head["bias"], wanted[seed]["bias"])


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_job_uses_no_generator_that_others_use(weights: Path, tmp_path: Path, train: str) -> None:
    """No number of a run hangs on what else draws random numbers in its process."""
    data = make_tree(tmp_path / "skin_cancer", num_train=2, num_test=1)
    sweep = make_sweep(data, weights, tmp_path / "runs", batch_sizes=[4], epochs=1, train=train)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    run_job([run.folder for run in sweep.runs()])
    after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


def test_what_the_weights_file_lacks_is_zero(weights: Path) -> None:
    """Batch norm counts its batches from 0 where the file has no counts, as torchvision's do."""
    model = build_model(DEFAULT, weights)
    counts = [value for name, value in model.named_buffers() if name.endswith("tracked")]
    assert len(counts) == 20
    assert not any(counts)
