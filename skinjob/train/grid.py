"""The tests of runs with `updates`: after the same numbers of updates, whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from skinjob.config import TrainConfig, tests_every
from skinjob.sweeps.records import TESTS


def is_test(config: TrainConfig, update: int) -> bool:
    """Returns whether a run is tested after an update, counted from 1."""
    if not config.updates:
        return False
    return update % tests_every(config.updates) == 0 or update == config.updates


def test_rows(
    scores: Mapping[int, Mapping[str, float]],
    losses: Tensor,
    since_test: tuple[float, int],
    *,
    epoch: int,
    first: int,
    batch_size: int,
) -> tuple[list[list[str]], tuple[float, int]]:
    """Returns a run's rows of tests.csv of an epoch, and its training loss since the last of them.

    *scores* are the test metrics by update. *losses* (N,) are those of the training images, in the
    order of the updates after the *first*. *since_test* is what the epoch before returned: the sum
    of the losses, and the number of images.
    """
    rows, start, (total, num) = [], 0, since_test
    for update, own in scores.items():
        part = losses[start : (update - first) * batch_size].double()
        total, num, start = total + float(part.sum()), num + len(part), start + len(part)
        values = {
            "train_loss": total / num,
            "test_loss": own["loss"],
            "test_acc": own["accuracy"],
            "test_auc": own["auc"],
        }
        cells = {"update": str(update), "epoch": str(epoch)}
        cells |= {n: "" if math.isnan(value) else f"{value:.6f}" for n, value in values.items()}
        rows.append([cells[name] for name in TESTS])
        total, num = 0.0, 0
    part = losses[start:].double()
    return rows, (total + float(part.sum()), num + len(part))
