"""Many runs in one job: each as if it were alone, all at little more than the cost of one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from trees import left, make_sweep, make_tree

from skinjob.config import TrainConfig
from skinjob.errors import ConfigError, ImagesError, RunError
from skinjob.queues.base import group_runs, record_jobs
from skinjob.sweeps.layout import Sweep
from skinjob.train.job import run_job
from skinjob.train.lease import take, track_run_state


@pytest.fixture(scope="module")
def weights(published_size: Path) -> Path:
    return published_size


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("data") / "skin_cancer", num_train=10, num_test=4)


def test_runs_in_one_job_are_those_of_jobs_of_their_own(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """Who shares a job changes no number: rows, predictions and heads are the same bytes."""
    grid = {"batch_sizes": (4, 8), "lrs": (0.01, 0.1), "seeds": (0, 1)}
    together = make_sweep(data, weights, tmp_path / "a", **grid)
    run_job([run.folder for run in together.runs()])
    apart = make_sweep(data, weights, tmp_path / "b", **grid)
    for run in reversed(apart.runs()):
        run_job([run.folder])
    assert [left(run) for run in together.runs()] == [left(run) for run in apart.runs()]
    assert len({left(run)[1] for run in together.runs()}) == 8  # and no two runs are alike
    assert sum(run.state().views_computed for run in together.runs()) == 3
    assert {run.state().status for run in together.runs()} == {"done"}


def test_a_run_that_fails_does_not_stop_the_others(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """One learning rate too many costs its own runs alone, and is named by its own log alone."""
    sweep = make_sweep(data, weights, tmp_path, batch_sizes=[4], lrs=(0.1, 1e38), epochs=9)
    good, bad = sweep.runs()
    with pytest.raises(RunError, match="the loss is"):
        run_job([bad.folder, good.folder])
    assert (good.state().status, good.state().epoch) == ("done", 9)
    assert bad.state().status == "failed"
    assert "the loss is" in str(bad.state().reason)
    assert "error:" in bad.log_file.read_text()
    assert "error:" not in good.log_file.read_text()
    assert "view 1 computed" in good.log_file.read_text()
    assert "epoch 9/9" in good.log_file.read_text()
    assert "epoch 9/9" not in bad.log_file.read_text()


def test_a_fault_that_all_share_fails_them_all(data: Path, weights: Path, tmp_path: Path) -> None:
    """Whatever ends the job before its runs are done is said by each of them."""
    sweep = make_sweep(data, weights, tmp_path / "runs")
    sweep.images_file.unlink()
    with pytest.raises(ImagesError, match=r"images\.csv: No such file"):
        run_job([run.folder for run in sweep.runs()])
    assert {run.state().status for run in sweep.runs()} == {"failed"}


def test_a_run_that_another_job_has_by_now_is_left_alone(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """The end of a job says nothing of a run that failed in it and was submitted again."""
    sweep = make_sweep(data, weights, tmp_path)
    mine, other = sweep.runs()

    def end_badly() -> None:
        with track_run_state(take([mine, other], "1")):
            other.update_state(status="running", job_id="2", holder="another")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_badly()
    assert mine.state().status == "failed"
    assert (other.state().status, other.state().job_id) == ("running", "2")


def test_a_job_that_is_started_again_trains_what_is_left(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """A requeued job repeats no run that is done, and takes none that another job has."""
    sweep = make_sweep(data, weights, tmp_path, batch_sizes=[4, 8, 16], epochs=1)
    done, other, left_over = sweep.runs()
    record_jobs(sweep, {done.name: "1", other.name: "2", left_over.name: "1"})
    run_job([done.folder], job_id="1")
    before = done.metrics_file.stat().st_mtime_ns
    run_job([run.folder for run in sweep.runs()], job_id="1", is_restart=True)
    assert left_over.state().status == "done"
    assert not other.metrics_file.exists()
    assert done.metrics_file.stat().st_mtime_ns == before


def test_runs_of_two_sweeps_do_not_share_a_job(data: Path, weights: Path, tmp_path: Path) -> None:
    """A run is trained by its own sweep's recipe or not at all."""
    one, two = (make_sweep(data, weights, tmp_path / name).runs()[0] for name in "ab")
    with pytest.raises(ConfigError, match="runs of 2 sweeps"):
        run_job([one.folder, two.folder])


def test_the_jobs_of_a_grid() -> None:
    """Heads of a batch size share a job, up to a limit; runs of all layers have one each."""

    def jobs(train: str) -> list[tuple[str, ...]]:
        configs = {
            f"{size}-{lr}": TrainConfig(data="d", weights="w", batch_size=size, lr=lr, train=train)
            for size in (32, 64)
            for lr in (0.1, 1.0)
        }
        return group_runs(configs)

    assert jobs("head") == [("32-0.1", "32-1.0"), ("64-0.1", "64-1.0")]
    seeds = {str(seed): TrainConfig(data="d", weights="w", batch_size=1) for seed in range(300)}
    assert [len(names) for names in group_runs(seeds)] == [128, 128, 44]
    assert jobs("all") == [("32-0.1",), ("32-1.0",), ("64-0.1",), ("64-1.0",)]


def test_a_job_computes_on_the_cores_that_its_queue_gives(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """Other jobs of the node may use the other cores, even where the process could."""
    run = make_sweep(data, weights, tmp_path).runs()[0]
    run_job([run.folder], num_cpus=1)
    log = run.log_file.read_text()
    assert "device: cpu, 1 CPU thread (" in log
    assert "views: 1 batches at a time" in log


def test_a_cosine_takes_the_learning_rate_down(data: Path, weights: Path, tmp_path: Path) -> None:
    """The lr column is the rate of the epoch's last update, and the last of all is nearly 0."""
    sweep = make_sweep(data, weights, tmp_path, batch_sizes=[4], epochs=4, schedule="cosine")
    run_job([run.folder for run in sweep.runs()])
    rows = lr_column(sweep)
    assert rows == sorted(rows, reverse=True)
    assert 0 < rows[-1] < 0.001 < rows[0] < 0.1


def lr_column(sweep: Sweep) -> list[float]:
    with sweep.runs()[0].metrics_file.open(newline="") as lines:
        return [float(row["lr"]) for row in csv.DictReader(lines)]
