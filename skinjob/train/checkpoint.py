"""The checkpoint of a run: where it goes on, whatever ended it.

What is restored is restored together: the epochs' rows, what was trained, and the optimizer.
Orders, crops and flips are drawn from seeds and positions, so the epoch is all that there is of
random state and of the place among the views.
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
"""Of the rows of a checkpoint of format 1, which does not name them."""

UNUSABLE = (ValueError, LookupError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError)
"""What is raised of a checkpoint that does not load. A signal's handler may raise other things."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its epochs; before its first where there are no rows."""

    rows: Sequence[Sequence[str]] = ()
    """The rows of metrics.csv, one an epoch."""
    state: dict[str, Any] = field(default_factory=dict)
    """What was trained, the optimizer, and the updates so far."""
    precision: str = ""
    """The arithmetic that it was computed in; `auto` may come to another on another node."""

    @property
    def epoch(self) -> int:
        return len(self.rows)


def save_checkpoint(run: Run, config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of the epoch that was just finished; the one before is kept."""
    file = io.BytesIO()  # a full disk is told as such by Python's own write, not by torch's
    rows = [list(row) for row in checkpoint.rows]
    held = {"rows": rows, "state": checkpoint.state, "precision": checkpoint.precision}
    named = {"format": FORMAT, "columns": list(METRICS), "config": config.record()}
    torch.save({**named, **held}, file)
    content = file.getvalue()
    newest, before = run.checkpoint_files
    # A head that a power cut took with it is trained again from its views in no time; flushing to
    # disk would take longer than its epochs, with many heads in a job.
    with replacing(newest, is_durable=config.train == "all") as partial:
        with partial.open("wb") as written:
            written.write(content)
            # torch reads a flipped byte without a word: 5,119 of 6,000 flips gave other numbers.
            written.write(hashlib.sha256(content).digest())
        if newest.exists():
            newest.replace(before)


def read_checkpoint(run: Run, config: TrainConfig) -> Checkpoint:
    """Returns the newest checkpoint that loads; removes those that do not.

    Nothing of the files is executed.
    """
    found = list(_loaded(run, config))
    best = max(found, key=lambda checkpoint: checkpoint.epoch, default=Checkpoint())
    if best.epoch:
        log.info("checkpoint: goes on after epoch %d", best.epoch, extra={"run": run.name})
    return best


def remove_checkpoints(run: Run) -> None:
    """Removes what a finished run needs no more."""
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
    """Returns a config with all fields, without where the files lie: a project may be moved."""
    return filled_recipe(config) | {"data": "", "weights": ""}


def _load(file: Path, config: TrainConfig) -> Checkpoint:
    """Raises: FileNotFoundError, and anything for a file that is none of this run's."""
    written = file.read_bytes()
    end = len(written) - hashlib.sha256().digest_size
    if hashlib.sha256(written[:end]).digest() != written[end:]:
        raise ValueError("its bytes are not those that were written")
    content = torch.load(io.BytesIO(written[:end]), map_location="cpu", weights_only=True)
    if content.get("format", 1) > FORMAT:
        raise ValueError(f"a newer skinjob wrote it (format {content['format']})")
    if _without_paths(content["config"]) != _without_paths(config.record()):
        raise ValueError("it is of another configuration")
    columns, state = content.get("columns", FIRST_COLUMNS), content["state"]
    if any(len(row) != len(columns) for row in content["rows"]) or not isinstance(state, dict):
        raise ValueError("it does not hold what a checkpoint holds")
    named = [dict(zip(columns, row, strict=True)) for row in content["rows"]]
    rows = [[row.get(column, "") for column in METRICS] for row in named]
    return Checkpoint(rows, state, content["precision"])
