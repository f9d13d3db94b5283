"""Makes sweep folders as jobs would leave them, with drawn learning curves and no training.

`trees.make_sweep` makes a sweep as submit leaves it, before its jobs begin.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from skinjob.config import TrainConfig, tests_every
from skinjob.sweeps.layout import Run, Sweep, run_name
from skinjob.sweeps.records import METRICS, RunState

COUNTS = {
    "train": {"benign": 1440, "malignant": 1197},
    "test": {"benign": 360, "malignant": 300},
}


def draw_sweep(
    folder: Path,
    *,
    batch_sizes: Sequence[int] = (32, 64, 128, 256),
    lrs: Sequence[float] = (0.01,),
    seeds: Sequence[int] = (0,),
    epochs: int = 20,
    updates: int | None = None,
    finished: Mapping[str, int] | None = None,
    states: Mapping[str, RunState] | None = None,
    counts: Mapping[str, Mapping[str, int]] = COUNTS,
    kind: str | None = None,
    has_predictions: bool = False,
) -> Sweep:
    """Makes a sweep whose runs are done, except those with fewer epochs in *finished*.

    With *updates*, the epochs follow from them, and the runs have a tests.csv.
    *has_predictions* says if the runs have a predictions.csv too.

    *finished* maps a run's name to its epochs, *states* to its state.json.
    """
    sweep = Sweep(folder)
    folder.mkdir(parents=True)
    names = []
    for batch_size, lr, seed in itertools.product(batch_sizes, lrs, seeds):
        run = Run(folder / run_name(batch_size, lr, seed))
        names.append(run.name)
        per_epoch = math.ceil(sum(counts["train"].values()) / batch_size)
        all_epochs = -(-updates // per_epoch) if updates else epochs
        done = (finished or {}).get(run.name, all_epochs)
        state = RunState(
            status="done" if done == all_epochs else "running",
            epoch=done,
            updates=min(updates or done * per_epoch, done * per_epoch),
            device="NVIDIA H100 80GB HBM3",
            precision="bf16",
            started_utc="2025-03-01T09:00:00Z",
            heartbeat_utc="2025-03-01T09:10:00Z",
            images_per_s=277.6,
        )
        state = (states or {}).get(run.name, state)
        _make_run(run, batch_size, lr, seed, done, updates, state, counts)
        if has_predictions:
            truth = [n < counts["test"]["malignant"] for n in range(sum(counts["test"].values()))]
            draw = random.Random(run.name)
            write_scores(run, [0.3 + 0.2 * own + 0.4 * draw.random() for own in truth], truth)
    info = _info(sweep, batch_sizes, lrs, seeds, epochs, names, counts, kind)
    if updates:
        del info["recipe"]["epochs"]
        info["recipe"]["updates"] = updates
    sweep.sweep_file.write_text(json.dumps(info, indent=2), encoding="utf-8")
    return sweep


def _make_run(
    run: Run,
    batch_size: int,
    lr: float,
    seed: int,
    epochs: int,
    updates: int | None,
    state: RunState,
    counts: Mapping[str, Mapping[str, int]],
) -> None:
    run.folder.mkdir()
    config = TrainConfig(
        data="skin_cancer",
        weights="weights/resnet18.safetensors",
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        updates=updates,
    ).with_epochs_for(sum(counts["train"].values()))
    run.config_file.write_text(json.dumps(asdict(config)), encoding="utf-8")
    rows = metric_rows(run, batch_size, seed, epochs, counts, lr, updates)
    if rows:
        ended, accuracy = rows[-1]["time_utc"], rows[-1]["test_accuracy"]
        state = replace(state, epoch_utc=state.epoch_utc or ended, test_accuracy=accuracy)
    run.state_file.write_text(json.dumps(asdict(state)), encoding="utf-8")
    write_rows(run, rows)
    if updates:
        points = [n for n in range(1, updates + 1) if n % tests_every(updates) == 0 or n == updates]
        points = [point for point in points if rows and point <= rows[-1]["updates"]]
        write_tests(run, points, [0.7 - 0.3 * n / updates for n in points], [0.8] * len(points))


def write_tests(
    run: Run, points: Sequence[int], losses: Sequence[float], aucs: Sequence[float]
) -> None:
    """Writes a run's tests.csv; *points* are the updates."""
    tests = zip(points, losses, aucs, strict=True)
    run.write_tests(
        [[str(n), "1", "0.6", f"{loss:.6f}", "0.7", f"{auc:.6f}"] for n, loss, auc in tests]
    )


def write_rows(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a run's metrics.csv as a job does."""
    run.write_metrics([[_written(name, row.get(name, "")) for name in METRICS] for row in rows])


def _written(name: str, value: Any) -> str:
    """Returns a value as a job writes it: with a fixed number of digits, also if they are zeros."""
    digits = {"lr": "g", "seconds": ".3f", "images_per_s": ".1f"}
    return format(value, digits.get(name, ".6f")) if isinstance(value, float) else str(value)


def set_column(run: Run, column: str, values: Sequence[str]) -> None:
    """Rewrites one column of a run's metrics.csv."""
    with run.metrics_file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    write_rows(run, [{**row, column: value} for row, value in zip(rows, values, strict=True)])


def write_scores(run: Run, scores: Sequence[float], is_positive: Sequence[bool]) -> None:
    """Writes a run's predictions.csv; *scores* are the probabilities of malignant."""
    labels = [("benign", "malignant")[bool(truth)] for truth in is_positive]
    write_predictions(run, {f"{n}.jpg": score for n, score in enumerate(scores)}, labels)


def write_predictions(run: Run, scores: Mapping[str, float], labels: Sequence[str]) -> None:
    """Writes a run's predictions.csv; *scores* are the probabilities of malignant by image."""
    with run.predictions_file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["image", "label", "predicted", "p_benign", "p_malignant"])
        for (name, p), label in zip(scores.items(), labels, strict=True):
            predicted = "malignant" if p >= 0.5 else "benign"
            writer.writerow([name, label, predicted, f"{1 - p:.6f}", f"{p:.6f}"])


def metric_rows(
    run: Run,
    batch_size: int,
    seed: int,
    epochs: int,
    counts: Mapping[str, Mapping[str, int]] = COUNTS,
    lr: float = 0.01,
    most_updates: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.csv; the same arguments give the same rows."""
    draw = random.Random(batch_size * 1000 + seed + round(1e9 * (lr - 0.01)))
    images = sum(counts["train"].values())
    num_test = sum(counts["test"].values())
    updates = math.ceil(images / batch_size)
    pace = 0.012 * (lr / 0.01) ** 0.5
    rows = []
    for epoch in range(1, epochs + 1):
        learnt = 1 - math.exp(-pace * updates * epoch / (1 + updates / 90))
        wobble = 0.006 * (1 + batch_size / 200)
        accuracy = 0.62 + 0.235 * learnt + draw.gauss(0, wobble)
        rows.append(
            {
                "sweep": run.sweep.name,
                "run": run.name,
                "batch_size": batch_size,
                "seed": seed,
                "epoch": epoch,
                "updates": min(updates * epoch, most_updates or updates * epoch),
                "lr": lr,
                "train_loss": round(0.66 - 0.33 * learnt + draw.gauss(0, 0.004), 6),
                "train_accuracy": round(0.60 + 0.265 * learnt + draw.gauss(0, 0.004), 6),
                "test_loss": round(0.65 - 0.29 * learnt + draw.gauss(0, wobble), 6),
                "test_accuracy": round(round(accuracy * num_test) / num_test, 6),
                "test_auc": round(0.70 + 0.23 * learnt, 6),
                "test_sensitivity": round(accuracy - 0.02, 6),
                "test_specificity": round(accuracy + 0.02, 6),
                "seconds": round(9.0 + draw.random(), 3),
                "images_per_s": round(images / 9.5, 1),
                "time_utc": f"2025-03-01T09:{epoch // 60:02d}:{epoch % 60:02d}Z",
            }
        )
    return rows


def _info(
    sweep: Sweep,
    batch_sizes: Sequence[int],
    lrs: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    names: list[str],
    counts: Mapping[str, Mapping[str, int]],
    kind: str | None,
) -> dict[str, Any]:
    return {
        "format": 1,
        "name": sweep.name,
        "created_utc": "2025-03-01T08:59:00Z",
        "identity": "5b1c",
        "recipe": {
            "data": "skin_cancer",
            "weights": "weights/resnet18.safetensors",
            "epochs": epochs,
            "augmentation_seed": 0,
            "device": "auto",
            "precision": "auto",
        },
        "batch_sizes": list(batch_sizes),
        "lrs": list(lrs),
        "seeds": list(seeds),
        "runs": names,
        "weights": {
            "path": "weights/resnet18.safetensors",
            "sha256": "5c106cde386e87d4033832f2996f5493238eda96ccf559d1d62760c4de0613f8",
            "architecture": "resnet18",
            "source": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
            "source_sha256": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
            "untrained": kind == "untrained",
            **({"kind": kind} if kind else {}),
        },
        "images": {
            "root": "skin_cancer",
            "fingerprint": "c0ffee1234567890c0ffee1234567890c0ffee1234567890c0ffee1234567890",
            "classes": sorted(counts["test"]),
            "counts": {split: dict(classes) for split, classes in counts.items()},
        },
        "cluster": {"cluster": "slurm", "partition": "gpu", "gpus": 1},
        "jobs": {name: f"12_{number}" for number, name in enumerate(names)},
        "versions": {"skinjob": "0.1.0", "python": "3.11.7", "torch": "2.9.0"},
    }
