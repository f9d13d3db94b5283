"""Odd paths and secrets on a real SLURM, whose #SBATCH lines have rules of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Slurm
from commands import only_sweep, refusal
from trees import make_tree

SECRETS = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG", "HF_TOKEN": "hf_qpwoeirutyalskdjfhg"}
ODD = """it's "odd" $(touch pwned) `touch pwned` ; touch pwned & # ü"""
SMALL = (
    "--batch-sizes", "2,4", "--epochs", "1", "--device", "cpu", "--cpus", "1", "--mem", "2",
)  # fmt: skip


def test_odd_paths_train_on_slurm_and_keep_secrets(
    slurm: Slurm, tmp_path: Path, weights: Path
) -> None:
    """Every path may be odd, nothing in it is executed, and no token reaches a file or a script."""
    here = tmp_path / ODD
    data, runs = here / f"-data {ODD}", f"-runs {ODD}"
    make_tree(data, num_train=4, num_test=2)
    (here / f"-weights {ODD}").symlink_to(weights)
    options = ("--data", data.name, "--weights", f"-weights {ODD}", "--runs", runs)
    result = slurm.skinjob("submit", *SMALL, *options, "--name", ODD, cwd=here, **SECRETS)
    assert result.returncode == 0, result.stderr
    sweep = only_sweep(here / runs)
    (array,) = {job.split("_")[0] for job in sweep.info()["jobs"].values()}
    slurm.wait(array, timeout_s=180)
    assert {run.state().state for run in sweep.runs()} == {"done"}, result.stdout
    assert not list(tmp_path.rglob("pwned"))
    logs = [file.name for file in sweep.submission_folder.glob("*.out")]
    assert {f"{array}_0_0_log.out", f"{array}_1_0_log.out"} <= set(logs)
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        for name, secret in SECRETS.items():
            assert secret.encode() not in file.read_bytes(), f"{name} in {file}"


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("100%j", "SLURM replaces what follows %"),
        ("back\\slash", "takes \\ away"),
        ("line\nbreak", "a line break or another control character would end its #SBATCH line"),
    ],
)
def test_a_path_that_slurm_would_not_read_as_it_is_is_refused(
    slurm: Slurm, project: Path, runs: str, reason: str
) -> None:
    """A path that #SBATCH --output cannot hold is refused with the reason, and nothing is made."""
    result = slurm.skinjob("submit", *SMALL, "--runs", runs, cwd=project)
    assert reason in refusal(result)
    assert not (project / runs).exists()


def test_a_place_that_the_nodes_do_not_share_is_refused(slurm: Slurm, project: Path) -> None:
    """Below /tmp every node has files of its own: said at submit, unless the site says no."""
    result = slurm.skinjob(
        "submit", *SMALL, cwd=project, SKINJOB_SUBMIT_ALLOW_NODE_LOCAL="0", TMPDIR=""
    )
    assert "compute nodes do not see what is there" in refusal(result)
    assert "--allow-node-local" in result.stderr
    (project / "site.toml").write_text("[cluster]\nallow_node_local = true\n")
    allowed = slurm.skinjob("submit", *SMALL, "--job", "site.toml", "--dry-run", cwd=project)
    assert allowed.returncode == 0, allowed.stderr
