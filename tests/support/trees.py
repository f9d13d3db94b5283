"""Small image trees and sweeps for tests, made in milliseconds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skinjob.config import ClusterConfig, TrainConfig, grid
from skinjob.submit.folders import write_plan
from skinjob.submit.plan import make_plan
from skinjob.sweeps.layout import Run, Sweep

CLOCKS = ("seconds", "images_per_s", "time_utc")
COLOURS = {"benign": (150, 110, 90), "malignant": (90, 40, 60), "other": (60, 90, 150)}


def make_tree(
    root: Path,
    *,
    num_train: int = 8,
    num_test: int = 4,
    classes: Sequence[str] = ("benign", "malignant"),
) -> Path:
    """Makes noisy images of several shapes: num_train and num_test images of each class."""
    draws = np.random.default_rng(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = draws.integers(40, 90, 2)
                pixels = draws.normal(COLOURS[name], 40, (height, width, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    return root


def make_sweep(
    data: Path,
    weights: Path,
    runs: Path,
    *,
    batch_sizes: Sequence[int] = (4, 8),
    seeds: Sequence[int] = (0,),
    epochs: int = 2,
    updates: int | None = None,
    lrs: Sequence[float] = (0.1,),
    train: str = "head",
    schedule: str = "constant",
    precision: str = "fp32",
    positive: str | None = None,
    val_fraction: float = 0.0,
) -> Sweep:
    """Makes a checked sweep's folders, as `skinjob submit` does before it queues anything."""
    config = TrainConfig(
        train=train,
        schedule=schedule,
        data=str(data),
        weights=str(weights),
        batch_size=batch_sizes[0],
        epochs=epochs,
        updates=updates,
        device="cpu",
        precision=precision,
        positive=positive,
        val_fraction=val_fraction,
    )
    plan = make_plan(
        configs=grid(config, batch_size=batch_sizes, lr=lrs, seed=seeds),
        cluster=ClusterConfig(cluster="local"),
        runs=runs,
        name="sweep",
    )
    write_plan(plan)
    return plan.sweep


def left(run: Run) -> tuple[Any, ...]:
    """Returns the results of a finished run, without the columns that hold times."""
    with run.metrics_file.open(newline="") as lines:
        rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(lines)]
    part = "head" if run.config().train == "head" else "model"
    files = [run.predictions_file, run.trained_file(part)]
    files += [run.val_predictions_file] if run.config().val_fraction else []
    files += [run.tests_file] if run.config().updates else []
    return rows, *(file.read_bytes() for file in files)
