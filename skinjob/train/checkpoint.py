"""The checkpoint of a run, from which it continues after any kind of end.

It holds the rows of the finished epochs, the trained layers and the optimizer. It needs no random
state: orders, crops and flips are drawn from seeds and from the number of the epoch.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from skinjob.config import TrainConfig
from skinjob.files import replacing
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import FORMAT, METRICS, filled_recipe

log = logging.getLogger("skinjob")

FIRST_COLUMNS = (
    *("sweep", "run", "batch_size", "seed", "epoch", "updates", "lr", "train_loss"),
    *("train_accuracy", "test_loss", "test_accuracy", "test_auc", "test_sensitivity"),
    *("test_specificity", "seconds", "images_per_s", "time_utc"),
)
"""The columns of a checkpoint of format 1, which does not name them."""

UNUSABLE = (ValueError, LookupError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError)
"""The exceptions of a checkpoint that does not load. All others, as from a signal, pass through."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after its last finished epoch. Without rows, no epoch is finished."""

    rows: Sequence[Sequence[str]] = ()
    """The rows of metrics.csv, one for each epoch."""
    state: dict[str, Any] = field(default_factory=dict)
    """The trained layers, the optimizer, and the number of updates."""
    precision: str = ""
    """The precision of these epochs. On another node `auto` may choose another."""
    tests: Sequence[Sequence[str]] = ()
    """The rows of tests.csv; none without `updates`."""
    since_test: tuple[float, int] = (0.0, 0)
    """The sum of the training images' losses since the last test, and the number of the images."""

    @property
    def epoch(self) -> int:
        return len(self.rows)


def save_checkpoint(run: Run, config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of the last epoch, and keeps the previous checkpoint."""
    file = io.BytesIO()  # Python's write raises a clear error on a full disk, torch's does not
    rows = [list(row) for row in checkpoint.rows]
    record = {
        "format": FORMAT,
        "columns": list(METRICS),
        "config": config.record(),
        "rows": rows,
        "state": checkpoint.state,
        "precision": checkpoint.precision,
        "tests": [list(row) for row in checkpoint.tests],
        "since_test": checkpoint.since_test,
    }
    torch.save(record, file)
    content = file.getvalue()
    newest, previous = run.checkpoint_files
    # After a power cut a head is quickly trained again from its views. With many heads in a job,
    # flushing to disk would take longer than their epochs.
    with replacing(newest, is_durable=config.train == "all") as partial:
        with partial.open("wb") as written:
            written.write(content)
            # torch does not notice flipped bytes: 5,119 of 6,000 flips gave other numbers.
            written.write(hashlib.sha256(content).digest())
        if newest.exists():
            newest.replace(previous)


def read_checkpoint(run: Run, config: TrainConfig) -> Checkpoint:
    """Returns the newest checkpoint that loads, and removes those that do not.

    Nothing in the files is executed.
    """
    newest = max(_loaded(run, config), key=lambda point: point.epoch, default=Checkpoint())
    if newest.epoch:
        log.info("checkpoint: continues after epoch %d", newest.epoch, extra={"run": run.name})
    return newest


def remove_checkpoints(run: Run) -> None:
    """Removes the checkpoints of a finished run."""
    for file in reversed(run.checkpoint_files):
        file.unlink(missing_ok=True)


def _loaded(run: Run, config: TrainConfig) -> Iterator[Checkpoint]:
    for file in run.checkpoint_files:
        try:
            yield _load(file, config)
        except FileNotFoundError:
            continue
        except UNUSABLE as error:
            reason = str(error).strip().split("\n")[0]
            log.info("%s is not used: %s", file.name, reason, extra={"run": run.name})
            file.unlink(missing_ok=True)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with all fields, but without paths, as a project may be moved."""
    return filled_recipe(config) | {"data": "", "weights": ""}


def _load(file: Path, config: TrainConfig) -> Checkpoint:
    """Raises: FileNotFoundError, or one of UNUSABLE for a file that is not of this run."""
    written = file.read_bytes()
    end = len(written) - hashlib.sha256().digest_size
    if hashlib.sha256(written[:end]).digest() != written[end:]:
        raise ValueError("it is damaged: its SHA-256 does not match")
    content = torch.load(io.BytesIO(written[:end]), map_location="cpu", weights_only=True)
    if content.get("format", 1) > FORMAT:
        raise ValueError(f"a newer skinjob wrote it (format {content['format']})")
    if _without_paths(content["config"]) != _without_paths(config.record()):
        raise ValueError("it has another configuration")
    columns, state = content.get("columns", FIRST_COLUMNS), content["state"]
    if any(len(row) != len(columns) for row in content["rows"]) or not isinstance(state, dict):
        raise ValueError("its content is not that of a checkpoint")
    named = [dict(zip(columns, row, strict=True)) for row in content["rows"]]
    rows = [[row.get(column, "") for column in METRICS] for row in named]
    loss, num_images = content.get("since_test", (0.0, 0))
    tests = content.get("tests", ())
    return Checkpoint(rows, state, content["precision"], tests, (loss, num_images))
