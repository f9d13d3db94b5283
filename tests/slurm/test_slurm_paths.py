"""Odd paths and secrets on a real SLURM, whose #SBATCH lines have their own rules."""

from __future__ import annotations

from pathlib import Path

from cluster import Slurm
from commands import only_sweep
from trees import make_tree

SECRETS = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG", "HF_TOKEN": "hf_qpwoeirutyalskdjfhg"}
ODD = """it's "odd" $(touch pwned) `touch pwned` ; touch pwned & # ü"""
SMALL = (
    "--batch-sizes", "2,4", "--epochs", "1", "--device", "cpu", "--cpus", "1", "--mem", "2",
)  # fmt: skip


def test_odd_paths_train_on_slurm_and_keep_secrets(
    slurm: Slurm, tmp_path: Path, weights: Path
) -> None:
    """Every path may be odd, no part of it is executed, and no secret reaches a file or script."""
    here = tmp_path / ODD
    data, runs = here / f"-data {ODD}", f"-runs {ODD}"
    make_tree(data, num_train=4, num_test=2)
    (here / f"-weights {ODD}").symlink_to(weights)
    options = ("--data", data.name, "--weights", f"-weights {ODD}", "--runs", runs)
    result = slurm.skinjob("submit", *SMALL, *options, "--name", ODD, cwd=here, **SECRETS)
    assert result.returncode == 0, result.stderr
    sweep = only_sweep(here / runs)
    (array,) = {job.split("_")[0] for job in sweep.info().jobs.values()}
    slurm.wait(array, timeout_s=180)
    assert {run.state().status for run in sweep.runs()} == {"done"}, result.stdout
    assert not list(tmp_path.rglob("pwned"))
    logs = [file.name for file in sweep.submission_folder.glob("*.out")]
    assert {f"{array}_0_0_log.out", f"{array}_1_0_log.out"} <= set(logs)
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        for name, secret in SECRETS.items():
            assert secret.encode() not in file.read_bytes(), f"{name} in {file}"
