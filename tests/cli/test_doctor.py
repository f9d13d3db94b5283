"""`skinjob doctor` without SLURM: files, folders, and findings about a compute node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import skinjob

from skinjob.config import ClusterConfig
from skinjob.doctor.finding import Finding, failed
from skinjob.doctor.node import node_page
from skinjob.errors import ClusterError

FITTING = {"SKINJOB_SUBMIT_BATCH_SIZES": "4,8", "SKINJOB_SUBMIT_CLUSTER": "local"}

SEEN: dict[str, Any] = {
    "node": "node7",
    "python": "/venv/bin/python",
    "python_version": "3.11.7",
    "modules": {name: {"version": "1.0"} for name in ("skinjob", "submitit", "torch")},
    "cores": 4,
    "gpus_given": "0",
    "driver_cuda": "12.4",
    "gpu": {"name": "NVIDIA A100", "memory_bytes": 80e9, "built": "12.1"},
    "token": "t",
    "unseen": [],
    "free_bytes": 5e9,
    "network": "Network is unreachable",
    "clock": 1000.0,
}
"""What the probe records on a node with a working GPU."""


def test_doctor_checks_everything_even_after_a_failure(project: Path) -> None:
    """The doctor reports missing weights and bad images together, each with a fix."""
    (project / "weights/resnet18.safetensors").unlink()
    (project / "skin_cancer/train/benign/3.jpg").write_bytes(b"no image")
    (project / "skin_cancer/test/malignant/1.jpg").write_bytes(b"")
    result = skinjob("doctor", cwd=project, **FITTING)
    assert result.returncode == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("fail")]
    assert failed == ["weights", "images"]
    assert sum(line.strip().startswith("fix: ") for line in lines) == 2
    assert "train/benign/3.jpg" in result.stdout
    assert "test/malignant/1.jpg" in result.stdout
    assert any(line.startswith("ok       run folder") for line in lines)
    assert not (project / "runs").exists(), "doctor writes nothing"


def test_json_holds_the_same_checks(project: Path) -> None:
    """A program gets each check with its verdict, and the same exit code."""
    result = skinjob("doctor", "--json", "--epochs", "2", cwd=project, **FITTING)
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.returncode == 0
    assert checks["images"]["verdict"] == "ok"
    assert "train: 8 benign, 8 malignant" in checks["images"]["found"]
    assert checks["weights"]["verdict"] == "warn", "random weights are not a failure"
    assert checks["sweep"]["found"].startswith("2 runs in 2 jobs, in runs/")
    assert checks["SLURM"]["verdict"] == checks["probe"]["verdict"] == "skipped"


def test_a_sweep_that_submit_would_refuse_fails_with_a_fix(project: Path) -> None:
    """The doctor also reports what submit checks last, such as a batch size that is too large."""
    result = skinjob("doctor", "--batch-sizes", "4,64", "--cluster", "local", cwd=project)
    assert result.returncode == 1
    assert "batch size 64 is more than the 16 training images" in result.stdout
    assert "fix: skinjob doctor --cluster local --batch-sizes 4\n" in result.stdout


def test_a_folder_of_runs_that_everybody_can_write_fails(project: Path) -> None:
    """Jobs execute files of a sweep, so a folder where others could replace them is refused."""
    (project / "runs").mkdir()
    (project / "runs").chmod(0o777)
    result = skinjob("doctor", cwd=project, **FITTING)
    assert result.returncode == 1
    assert "fail     run folder" in result.stdout
    assert "fix: chmod o-w" in result.stdout
    assert "skipped  sweep" in result.stdout


def test_each_path_that_nodes_cannot_see_fails(project: Path, tmp_path: Path) -> None:
    """Runs, weights and images on a disk of this machine only are three failures."""
    tools = tmp_path / "bin"
    tools.mkdir()
    shutil.copy("/bin/true", tools / "sbatch")  # makes this machine a login node
    path = "/dev/shm/x"
    result = skinjob(
        "doctor",
        *("--runs", path, "--weights", path, "--data", path),
        cwd=project,
        PATH=str(tools),
    )
    for name in ("run folder", "weights", "images"):
        (line,) = [line for line in result.stdout.splitlines() if f" {name} " in line[:21] + " "]
        assert line.startswith("fail"), line
        assert "compute nodes do not see" in line


@pytest.mark.parametrize(
    ("fix", "beginning"),
    [
        ("skinjob submit --runs A; or skinjob submit -x", "skinjob doctor --runs A; or"),
        ("skinjob submit --dry-run   # shows", "skinjob submit --dry-run"),
        ("sinfo; then skinjob submit with another", "sinfo; then skinjob submit with"),
    ],
)
def test_a_fix_keeps_the_options_that_were_given(fix: str, beginning: str) -> None:
    """A fix that names another submit becomes a doctor command; other fixes stay as they are."""
    assert str(failed(ClusterError("", fix)).fix).startswith(beginning)


def seen(**changes: Any) -> dict[str, Finding]:
    """Returns the findings by name for a node that differs from SEEN in *changes*."""
    findings = node_page({**SEEN, **changes}, ClusterConfig(), token="t", seen_at=1000.0)
    return {finding.name: finding for finding in findings}


def test_a_working_gpu_is_shown_with_both_versions_of_cuda() -> None:
    """The finding names the GPU, the CUDA of the driver and the CUDA of torch."""
    gpu = seen()["its GPU"]
    assert gpu.verdict == "ok"
    assert gpu.text == (
        "NVIDIA A100, 80 GB; its driver supports CUDA 12.4, torch was built for 12.1"
    )


@pytest.mark.parametrize(
    ("changes", "text", "fix"),
    [
        ({"gpus_given": ""}, "SLURM gave no GPU", "--gpu-flag"),
        ({"driver_cuda": ""}, "no NVIDIA driver on node7", "nvidia-smi"),
        ({"built": ""}, "built without CUDA", "pip install torch"),
        ({"driver_cuda": "11.4"}, "supports CUDA 11.4, but torch was built for 12.1", "whl/cu114"),
        ({}, "torch cannot use it: RuntimeError: no kernel image", "nvidia-smi"),
    ],
)
def test_a_gpu_that_does_not_work_is_shown_with_its_cause(
    changes: dict[str, str], text: str, fix: str
) -> None:
    """No GPU, no driver, a torch without CUDA and an old driver each have their own fix."""
    built = changes.pop("built", "12.1")
    error = {"error": "RuntimeError: no kernel image is available\nmore", "built": built}
    gpu = seen(gpu=error, **changes)["its GPU"]
    assert gpu.verdict == "fail"
    assert text in gpu.text
    assert fix in str(gpu.fix)


def test_a_folder_or_clock_that_differs_on_the_node_is_reported() -> None:
    """A path that is another folder on the node fails; a wrong clock there is a warning."""
    findings = seen(token="another", clock=1100.0, cores=2)
    assert findings["its folder"].verdict == "fail"
    assert findings["its clock"].verdict == "warn"
    assert "100 s ahead" in findings["its clock"].text
    assert findings["its cores"].verdict == "warn"


def test_a_path_that_the_node_cannot_read_fails() -> None:
    """A link of the login node that is broken on the node fails, with the path that jobs use."""
    paths = seen(unseen=["/mnt/disk/skin_cancer"])["its paths"]
    assert paths.verdict == "fail"
    assert paths.text == "node7 cannot read /mnt/disk/skin_cancer"
    assert "--data FOLDER" in str(paths.fix)
    assert seen()["its paths"].verdict == "ok"


def test_a_network_is_no_failure() -> None:
    """The doctor says whether a node reaches the internet; both answers are ok."""
    assert "no internet" in seen()["its network"].text
    reached = seen(network="")["its network"]
    assert (reached.verdict, "reaches the internet" in reached.text) == ("ok", True)
