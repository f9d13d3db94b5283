"""`skinjob doctor` on a real SLURM: its failures, the probe of a node, and what it cleans up."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Slurm, running_slurm
from commands import SKINJOB, import_path, wait_until

import skinjob

FITTING = {"SKINJOB_SUBMIT_BATCH_SIZES": "4,8", "SKINJOB_SUBMIT_CPUS": "2"}

PROBE = ("--gpus", "0", "--probe")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster with GPUs of type a100, whose daemons a test may stop."""
    folder = tmp_path_factory.mktemp("lab")
    with running_slurm(folder, accounting="dbd", gpu_type="a100") as cluster:
        yield cluster


def doctor(
    lab: Slurm, *options: str, cwd: Path, code: int, **env: str
) -> dict[str, dict[str, Any]]:
    """Returns the findings of `skinjob doctor` by name."""
    result = lab.skinjob("doctor", "--json", *options, cwd=cwd, code=code, **(FITTING | env))
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, check in checks.items() if check["verdict"] == "fail"]


def test_on_a_healthy_cluster_nothing_fails(lab: Slurm, project: Path) -> None:
    """All checks pass, a start is shown, and the shell's variables are hidden from sbatch."""
    checks = doctor(
        lab, "--gpu-type", "a100", cwd=project, code=0, SBATCH_PARTITION="closed", SLURM_JOB_ID="7"
    )
    assert {check["verdict"] for check in checks.values()} <= {"ok", "warn", "skipped"}
    assert "it would start now on " in checks["script"]["found"]
    assert checks["partition"]["found"] == "lab (the default) is up, 1 node"
    assert "4 a100" in checks["GPU"]["found"]
    assert checks["account"]["found"] == "root (your default)"
    assert checks["environment"]["found"] == (
        "this shell is in job 7; hidden from sbatch: SBATCH_PARTITION, SLURM_JOB_ID"
    )
    assert not (project / "runs").exists(), "doctor writes nothing"


def test_every_value_above_a_limit_fails_with_the_limit(lab: Slurm, project: Path) -> None:
    """All values that the cluster cannot give are listed at once, and the fixes together work."""
    wrong = "--partition short --time 45 --gpu-type v100 --cpus 99 --mem 9999 --train all"
    words = [*wrong.split(), "--seeds", "0-600"]
    checks = doctor(lab, *words, cwd=project, code=1)
    expected = {
        "time limit": "45 min, but the partition allows 30",
        "GPU": "no node that is up has a GPU of type v100",
        "node size": "99 cores and 9999 GB; nodes have up to 8 and ",
        "jobs": "1,202 jobs, and an array may have 1001 (MaxArraySize)",
    }
    for name, beginning in expected.items():
        assert checks[name]["verdict"] == "fail"
        assert checks[name]["found"].startswith(beginning)
        words += _options(checks[name]["fix"])
    assert words[-4:] == ["--batch-sizes", "4", "--name", "new-sweep"]
    words += ["--seeds", "0"]  # the disk is too small for so many runs
    mended = doctor(lab, *words, cwd=project, code=0)
    assert {mended[name]["verdict"] for name in expected} == {"ok"}


def test_no_start_is_shown_for_a_job_that_would_never_start(lab: Slurm, project: Path) -> None:
    """`sbatch --test-only` names a start even for a job above the limit; the doctor does not."""
    for time_min, has_start in (("45", False), ("20", True)):
        words = ("--partition", "short", "--time", time_min)
        checks = doctor(lab, *words, cwd=project, code=0 if has_start else 1)
        assert checks["script"]["found"].startswith("sbatch --test-only accepts it")
        assert ("it would start" in checks["script"]["found"]) is has_start


@pytest.mark.parametrize(
    ("name", "text"),
    [("nowhere", "no partition nowhere on this cluster"), ("closed", "closed is down: jobs would")],
)
def test_a_partition_that_accepts_no_jobs_fails_with_others_that_do(
    lab: Slurm, project: Path, name: str, text: str
) -> None:
    """SLURM itself would queue a job in a closed partition, where it never starts."""
    checks = doctor(lab, "--partition", name, cwd=project, code=1)
    assert checks["partition"]["found"].startswith(text)
    assert checks["partition"]["fix"].startswith("skinjob doctor ")
    assert checks["partition"]["fix"].endswith(" --partition lab   # up: lab, short")


def _options(fix: str) -> list[str]:
    """Returns the options of a fix that is another call of the doctor."""
    assert fix.startswith("skinjob doctor ")
    return shlex.split(fix.removeprefix("skinjob doctor ").partition("#")[0])


def test_a_refusal_of_sbatch_is_shown_in_its_words(lab: Slurm, project: Path) -> None:
    """`sbatch --test-only` finds what no other check does, such as a feature that no node has."""
    checks = doctor(lab, "--constraint", "warp", cwd=project, code=1)
    assert failed(checks) == ["script"]
    assert "Invalid feature specification" in checks["script"]["found"]
    assert "--constraint" in checks["script"]["fix"]


def test_a_wrong_account_fails_if_the_cluster_enforces_accounts(lab: Slurm, project: Path) -> None:
    """It is a warning if SLURM accepts any account."""
    checks = doctor(lab, "--account", "nobodys", "--qos", "none", cwd=project, code=0)
    assert checks["account"]["verdict"] == "warn"
    assert checks["account"]["found"].startswith("account nobodys is none of yours (root)")
    conf = lab.state / "conf/slurm.conf"
    before = conf.read_text()
    conf.write_text(f"{before}AccountingStorageEnforce=associations,qos\n")
    try:
        lab.run(["scontrol", "reconfigure"], check=True)
        checks = doctor(lab, "--account", "nobodys", cwd=project, code=1)
        assert failed(checks) == ["account"]
        assert checks["account"]["fix"].endswith(" --account root")
    finally:
        conf.write_text(before)
        lab.run(["scontrol", "reconfigure"], check=True)


@pytest.mark.parametrize("way", ["missing", "switched off"])
def test_a_missing_sacct_is_only_a_warning(
    lab: Slurm, project: Path, tmp_path: Path, way: str
) -> None:
    """A user can submit without sacct, or if accounting is off."""
    conf = tmp_path / "slurm.conf"
    text = (lab.state / "conf/slurm.conf").read_text()
    conf.write_text(text.replace("accounting_storage/slurmdbd", "accounting_storage/none"))
    (tmp_path / "gres.conf").write_text((lab.state / "conf/gres.conf").read_text())
    env = {"PATH": lab.path_without("sacct")} if way == "missing" else {"SLURM_CONF": str(conf)}
    accounting = doctor(lab, cwd=project, code=0, **env)["accounting"]
    assert accounting["verdict"] == "warn"
    words = "no sacct on PATH" if way == "missing" else "accounting storage is disabled"
    assert words in accounting["found"]
    assert "status uses the run folders and scontrol instead" in accounting["found"]


def test_the_probe_shows_what_a_node_has(lab: Slurm, project: Path) -> None:
    """A real job checks the node: here only the driver of the GPU is missing, a failure."""
    checks = doctor(lab, "--probe", cwd=project, code=1)
    assert failed(checks) == ["its GPU"]
    assert "SLURM gave GPU 0, but there is no NVIDIA driver" in checks["its GPU"]["found"]
    assert "nvidia-smi" in checks["its GPU"]["fix"]
    assert "torch " in checks["its Python"]["found"]
    assert "read and written from both sides" in checks["its folder"]["found"]
    assert checks["its paths"]["verdict"] == "ok"
    assert "no internet" in checks["its network"]["found"]
    assert not (project / "runs").exists(), "the probe's files are removed"


def test_the_probe_says_which_modules_the_jobs_python_lacks(
    lab: Slurm, project: Path, tmp_path: Path
) -> None:
    """A Python without torch that only the nodes have is noticed before a sweep is queued."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    # The set-up line fails here, like a `module` that only nodes have: so it is no error here.
    python = ("--python", f"{tmp_path}/bare/bin/python", "--setup", 'test "$SLURM_JOB_ID"')
    package = str(
        Path(skinjob.__file__).parent.parent
    )  # without the packages that are installed beside it
    checks = doctor(lab, *python, *PROBE, cwd=project, code=1, PYTHONPATH=package)
    assert failed(checks) == ["its Python"]
    assert "torch: ModuleNotFoundError: No module named 'torch'" in checks["its Python"]["details"]
    assert "--python" in checks["its Python"]["fix"]


def test_a_probe_whose_set_up_fails_shows_the_job_s_output(lab: Slurm, project: Path) -> None:
    """The doctor shows the exit code and the output of a job that dies before Python."""
    line = "echo no such module >&2; exit 3"
    checks = doctor(lab, "--setup", line, *PROBE, cwd=project, code=1)
    assert failed(checks) == ["probe"]
    assert "FAILED, exit code 3" in checks["probe"]["found"]
    assert checks["probe"]["details"] == ["no such module"]


@pytest.mark.parametrize("ends", [("INT",), ("HUP",), ("TERM", "HUP")], ids="-".join)
def test_a_probe_that_is_stopped_cancels_its_job(
    lab: Slurm, project: Path, ends: tuple[str, ...]
) -> None:
    """Ctrl-C, kill or a shell that closes leaves neither a job nor a folder."""
    full = lab.sbatch("sleep 600", "--exclusive", cwd=project)
    with subprocess.Popen(
        ["nsenter", f"--net={lab.netns}", *SKINJOB, "doctor", "--probe"],
        cwd=project,
        env=os.environ
        | import_path()
        | {**lab.env, **FITTING, "SKINJOB_SUBMIT_ALLOW_NODE_LOCAL": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: _jobs(lab) > {full})
        assert process.stderr
        assert "waiting, " in process.stderr.readline()
        for name in ends:
            process.send_signal(signal.Signals[f"SIG{name}"])
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in errors
    wait_until(lambda: _jobs(lab) == {full})
    assert not (project / "runs").exists()
    lab.run(["scancel", full], check=True)


def test_a_controller_that_is_down_fails_in_slurms_words(lab: Slurm, project: Path) -> None:
    """Without slurmctld, checks that need it are skipped and the others are made."""
    lab.stop_controller()
    try:
        checks = doctor(lab, "--probe", cwd=project, code=1)
    finally:
        lab.restart()
    assert failed(checks) == ["controller"]
    assert " is DOWN" in checks["controller"]["found"]
    for name in ("partition", "time limit", "GPU", "account", "script", "probe"):
        assert checks[name]["verdict"] == "skipped"
    assert checks["images"]["verdict"] == checks["sweep"]["verdict"] == "ok"


def _jobs(lab: Slurm) -> set[str]:
    return set(lab.run(["squeue", "-h", "-o", "%i"], check=True).stdout.split())
