"""The command that takes a sweep up again, to be pasted."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from skinjob.config import DEFAULTS, ClusterConfig, TrainConfig
from skinjob.runs import Run

USUAL_FILES = {"data": "skin_cancer", "weights": "weights/resnet18.safetensors"}
USUAL_SIZES = [32, 64, 128, 256]
TRAIN = {field.name: field.default for field in fields(TrainConfig)}
SPELLINGS = {"mem_gb": "mem", "time_min": "time"}


def submit_again(run: Run, **changes: Any) -> str:
    """Returns the command that queues again what of the run's sweep is not done.

    *changes* are to what its jobs ask for. Options at their defaults are left out. The name never
    is: should a job file say otherwise meanwhile, the command is refused, and makes no other sweep.
    """
    sweep, info = run.sweep, run.sweep.info()
    words = ["skinjob", "submit", "--name", sweep.name]
    if sweep.folder.parent.resolve() != Path("runs").resolve():
        words += ["--runs", str(sweep.folder.parent)]
    words += _recipe_words(run, info) + _cluster_words(info["cluster"] | changes, changes)
    return shlex.join(words)


def _recipe_words(run: Run, info: dict[str, Any]) -> list[str]:
    """Returns the options of the grid and of what all runs have in common."""
    config, usual = run.config(), TRAIN | DEFAULTS[run.config().train]
    words = []
    for name, file in USUAL_FILES.items():
        if Path(info["recipe"][name]) != Path(file).resolve():
            words += [f"--{name}", info["recipe"][name]]
    axes = (info["batch_sizes"], info["lrs"], info["seeds"])
    if len(axes[0]) * len(axes[1]) * len(axes[2]) != len(info["runs"]):
        # Of a grid with gaps the product would be more than the sweep: then the run alone.
        axes = ([config.batch_size], [config.lr], [config.seed])
    defaults = (USUAL_SIZES, [usual["lr"]], [0])
    for name, axis, default in zip(("batch-sizes", "lr", "seeds"), axes, defaults, strict=True):
        if axis != default:
            words += [f"--{name}", ",".join(map(str, axis))]
    for name in ("train", "epochs", "schedule", "precision"):
        if getattr(config, name) != usual[name]:
            words += [f"--{name}", str(getattr(config, name))]
    if info["images"].get("skipped"):
        words.append("--skip-bad-images")
    # cuda is what auto comes to where it was so at the first time.
    return [*words, "--device", "cpu"] if config.device == "cpu" else words


def _cluster_words(cluster: dict[str, Any], spelt: Collection[str]) -> list[str]:
    """Returns the options of what the jobs ask for, those in *spelt* at their defaults too."""
    words = []
    if cluster["cluster"] == "local" and shutil.which("sbatch"):
        words += ["--cluster", "local"]  # auto would be SLURM
    for field in fields(ClusterConfig):
        value = cluster.get(field.name, field.default)
        is_usual = value == field.default and field.name not in spelt
        if field.name in ("cluster", "gpus", "setup") or is_usual:
            continue  # without a GPU is what --device cpu comes to
        words.append(f"--{SPELLINGS.get(field.name, field.name.replace('_', '-'))}")
        if value is not True:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    for line in cluster.get("setup", ()):
        words += ["--setup", line]
    return words
