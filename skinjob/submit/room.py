"""Whether a disk has room for what a sweep writes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from skinjob.config import TrainConfig
from skinjob.data.images import KEPT_MOST_BYTES, KEPT_SHARE, ImageSet
from skinjob.errors import RunError
from skinjob.submit.place import nearest

VIEW_BYTES = 2048  # of an image in a view: 512 float32
DECODED_BYTES = 224 * 224 * 3  # of an image with its shorter side at 224, and more where it is long
CHECKPOINT_BYTES = 135_000_000  # ResNet18 with AdamW's two moments; two are kept, one is written
MODEL_BYTES = 45_000_000
ROW_BYTES = 250  # of metrics.csv and predictions.csv


def bytes_needed(
    configs: Mapping[str, TrainConfig],
    images: ImageSet,
    views_folder: Path,
    *,
    jobs_at_once: int,
    free: int,
) -> int:
    """Returns the most that new runs of a sweep will write, where *free* bytes are free.

    Views and decoded images are shared by the heads of a job; the rest is each run's own.
    """
    recipe = next(iter(configs.values()))
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    decoded = num_train if recipe.train == "head" else num_train + num_test
    kept = jobs_at_once * min(decoded * DECODED_BYTES, KEPT_MOST_BYTES, free // KEPT_SHARE)
    rows = len(configs) * (recipe.epochs + num_test) * ROW_BYTES
    if recipe.train == "all":
        return kept + rows + len(configs) * (3 * CHECKPOINT_BYTES + MODEL_BYTES)
    views = VIEW_BYTES * (num_train * recipe.epochs + num_test)
    there = sum(file.stat().st_size for file in views_folder.glob("*.safetensors"))
    return kept + rows + max(0, views - there)  # those that are there may be these


def require_room(runs: Path, num_bytes: int, free: int) -> None:
    """Returns when *num_bytes* fit the *free* ones of the file system of *runs*.

    Raises: RunError with both numbers when they do not.
    """
    if num_bytes > free:
        needed_mb, free_mb = -(-num_bytes // 10**6), free // 10**6
        raise RunError(
            f"--runs {runs}: the sweep writes up to {needed_mb:,} MB, and {free_mb:,} MB are free",
            f"df -h {shlex.quote(str(nearest(runs)))}   # and another --runs, fewer --epochs, or "
            "fewer jobs at once (--array-parallelism)",
        )


def free_bytes(folder: Path) -> int:
    """Returns what the user can still write to a folder, or to where it is going to be."""
    return shutil.disk_usage(nearest(folder)).free
