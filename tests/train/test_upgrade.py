"""An upgrade that adds an option or a column leaves sweeps and checkpoints as they were."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from trees import make_sweep

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.errors import RunError
from skinjob.submit.plan import make_plan
from skinjob.sweeps import records
from skinjob.sweeps.layout import Sweep
from skinjob.train import checkpoint
from skinjob.train.checkpoint import Checkpoint, read_checkpoint, save_checkpoint


@dataclass(frozen=True, kw_only=True)
class WiderConfig(TrainConfig):
    """A recipe of a later version, with an option more."""

    momentum: float = 0.9


@pytest.fixture
def sweep(project: Path) -> Sweep:
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    return make_sweep(data, weights, project / "runs", batch_sizes=(4,))


def test_a_new_option_orphans_no_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its default it is the recipe of before, for sweeps and checkpoints; else it is another."""
    (run,) = sweep.runs()
    save_checkpoint(run, run.config(), Checkpoint([["x"] * len(records.METRICS)], {}, "fp32"))
    old = asdict(run.config())
    monkeypatch.setattr(records, "TrainConfig", WiderConfig)

    def plan(name: str | None, **new: float) -> Sweep:
        cluster, runs = ClusterConfig(cluster="local"), sweep.folder.parent
        configs = [WiderConfig(**old | new)]
        return make_plan(configs=configs, cluster=cluster, runs=runs, name=name).sweep

    assert plan("sweep").folder == plan(None).folder == plan(None, momentum=0.9).folder
    assert plan(None).folder == sweep.folder
    assert plan(None, momentum=0.5).folder != sweep.folder
    with pytest.raises(RunError, match="exists, with another recipe"):
        plan("sweep", momentum=0.5)
    assert read_checkpoint(run, WiderConfig(**old)).epoch == 1
    assert read_checkpoint(run, WiderConfig(**old, momentum=0.5)).epoch == 0


@pytest.mark.parametrize("is_oldest", [True, False])
def test_a_new_column_costs_no_checkpoint(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, is_oldest: bool
) -> None:
    """The rows of before have an empty cell for it, whatever its place among the columns."""
    (run,) = sweep.runs()
    columns = list(checkpoint.FIRST_COLUMNS if is_oldest else records.METRICS)
    if is_oldest:  # of a format without the names of columns
        monkeypatch.setattr(checkpoint, "METRICS", ())
        monkeypatch.setattr(checkpoint, "FORMAT", 1)
        save, remove = checkpoint.torch.save, ("columns", "format")
        monkeypatch.setattr(
            checkpoint.torch,
            "save",
            lambda held, file: save({k: v for k, v in held.items() if k not in remove}, file),
        )
    save_checkpoint(run, run.config(), Checkpoint([columns], {}, "fp32"))
    wider = [*columns[:7], "new", *columns[7:]]
    monkeypatch.setattr(checkpoint, "METRICS", wider)
    assert read_checkpoint(run, run.config()).rows == [[*columns[:7], "", *columns[7:]]]


def test_a_checkpoint_of_a_newer_skinjob_is_not_used(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run starts anew, and its log says why."""
    (run,) = sweep.runs()
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(run, run.config(), Checkpoint([["x"] * len(records.METRICS)], {}, "fp32"))
    monkeypatch.undo()
    caplog.set_level("INFO", "skinjob")
    assert read_checkpoint(run, run.config()) == Checkpoint()
    assert "checkpoint.pt is not used: a newer skinjob wrote it (format 99" in caplog.text
