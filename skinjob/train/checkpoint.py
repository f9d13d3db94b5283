"""The checkpoint of a run that trains all layers: where it goes on after whatever ended it."""

from __future__ import annotations

import logging
from dataclasses import asdict

import torch

from skinjob.files import replacing
from skinjob.runs import Run
from skinjob.train.finetune import FullTraining

log = logging.getLogger("skinjob")


def save_checkpoint(run: Run, training: FullTraining, epoch: int) -> None:
    """Replaces the run's checkpoint by one of the epoch that was just finished."""
    content = {"config": asdict(training.config), "epoch": epoch, **training.state()}
    with replacing(run.checkpoint_file) as partial:
        torch.save(content, partial)


def restore_checkpoint(run: Run, training: FullTraining) -> int:
    """Puts the training where the checkpoint left it; returns its epoch, 0 where there is none.

    The file is read without executing anything of it.
    """
    if not run.checkpoint_file.exists():
        return 0
    try:
        content = torch.load(run.checkpoint_file, map_location="cpu", weights_only=True)
    except Exception as fault:  # whatever torch raises of a damaged file
        log.info("checkpoint does not load, training starts anew: %s", str(fault).split("\n")[0])
        return 0
    if content["config"] != asdict(training.config):
        log.info("checkpoint is of another configuration, training starts anew")
        return 0
    if len(run.metric_rows()) < content["epoch"]:
        log.info("checkpoint goes further than metrics.csv, training starts anew")
        return 0
    training.restore(content)
    log.info("checkpoint: goes on after epoch %d", content["epoch"])
    return int(content["epoch"])
