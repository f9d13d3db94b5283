"""Jobs that SLURM refuses or does not start because of a site's rules, budgets and limits.

The cluster is real, enforces limits, and has a job_submit plugin like those that sites write.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm, running_slurm
from commands import refusal, wait_until
from trees import make_tree

from skinjob.sweeps.layout import Sweep

CONF = "JobSubmitPlugins=lua\nAccountingStorageEnforce=safe,limits,qos\n"
PLUGIN = """
function slurm_job_submit(job, partitions, user)
  slurm.log_user("Your group has used 83 percent of its storage")
  slurm.log_user("See the handbook")
  if job.comment == "no" then return slurm.ERROR end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""
SMALL = ("--cpus", "1", "--mem", "1", "--time", "30", "--device", "cpu")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster that enforces limits; the user's account is lab."""
    state = tmp_path_factory.mktemp("limits")
    (state / "conf").mkdir()
    (state / "conf/job_submit.lua").write_text(PLUGIN)
    with running_slurm(state, accounting="dbd", conf=CONF) as cluster:
        sacctmgr(cluster, "add", "account", "lab")
        sacctmgr(cluster, "add", "user", "root", "account=lab")
        sacctmgr(cluster, "modify", "user", "root", "set", "defaultaccount=lab")
        yield cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_tree(folder / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, folder / "weights")
    return folder


def sacctmgr(site: Slurm, *words: str) -> None:
    site.run(["sacctmgr", "--immediate", *words], check=True)


def check(site: Slurm, name: str, *options: str, cwd: Path, **env: str) -> dict[str, str]:
    """Returns the finding of a check of `skinjob doctor`."""
    result = site.skinjob("doctor", *SMALL, *options, "--json", cwd=cwd, **env)
    (finding,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == name]
    return dict(finding)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--account", "nobody"),
            "Invalid account or account/partition combination specified (--account nobody)",
        ),
        (
            ("--sbatch=--comment=no",),
            "Your group has used 83 percent of its storage; See the handbook",
        ),
    ],
)
def test_messages_of_a_site_are_not_the_reason_of_a_refusal(
    site: Slurm, project: Path, options: tuple[str, ...], words: str
) -> None:
    """The error has SLURM's own reason; without such a reason, it has all messages of the site."""
    result = site.skinjob("submit", "--batch-sizes", "4", *SMALL, *options, cwd=project)
    assert refusal(result) == f"sbatch refused: {words}"
    assert "See the handbook" in result.stdout + result.stderr
    script = check(site, "script", "--batch-sizes", "4", *options, cwd=project)
    assert script["found"] == f"sbatch refused: {words}"


@pytest.mark.parametrize(
    ("place", "limit", "most", "name_of_limit"),
    [
        ("user root", "MaxSubmitJobs", 2, "MaxSubmitJobs of account lab"),
        ("account lab", "GrpSubmitJobs", 3, "GrpSubmitJobs of account lab"),
        ("qos normal", "MaxSubmitJobsPerUser", 2, "MaxSubmitJobsPerUser of QOS normal"),
    ],
)
def test_too_many_jobs_are_refused_with_a_fix_that_fits(
    site: Slurm, project: Path, place: str, limit: str, most: int, name_of_limit: str
) -> None:
    """Submit and doctor know how many jobs may be in the queue; the fix submits that many."""
    where = ["where", "account=lab"] if place.startswith("user") else []
    grid = ("--batch-sizes", "2,4,8,16")
    name = limit.lower()
    sacctmgr(site, "modify", *place.split(), *where, "set", f"{limit}={most}")
    try:
        finding = check(site, "jobs", *grid, cwd=project)
        result = site.skinjob("submit", *grid, *SMALL, "--name", name, cwd=project)
        fix = result.stderr.partition("fix:   skinjob ")[2].partition("   #")[0]
        mended = site.skinjob(*shlex.split(fix), cwd=project)
        full = site.skinjob("submit", *grid, *SMALL, "--name", name, cwd=project)
    finally:
        sacctmgr(site, "modify", *place.split(), *where, "set", f"{limit}=-1")
    sentence = f"4 jobs, and you may have {most} in the queue ({name_of_limit})"
    assert (finding["verdict"], finding["found"]) == ("fail", sentence)
    assert refusal(result).startswith(sentence)
    assert mended.returncode == 0, mended.stderr
    assert len(Sweep(project / "runs" / name).info().jobs) == most
    assert f"({name_of_limit}, {most} of them used)" in refusal(full)
    assert "fix:   squeue" in full.stderr
    site.skinjob("cancel", f"runs/{name}", cwd=project)


def test_a_used_up_budget_is_shown_with_a_fix(site: Slurm, project: Path) -> None:
    """`status` does not say that the job starts when other jobs end, because it does not."""
    sacctmgr(site, "modify", "account", "lab", "set", "GrpTRESMins=cpu=1")
    try:
        site.skinjob("submit", "--batch-sizes", "4", *SMALL, "--name", "budget", cwd=project)
        shown: list[str] = []

        def is_looked_at() -> bool:
            shown.append(site.skinjob("status", "runs/budget", cwd=project).stdout)
            return not re.search(r"\((None|Resources|Priority)\)", shown[-1])

        wait_until(is_looked_at)
    finally:
        site.skinjob("cancel", "runs/budget", cwd=project)
        sacctmgr(site, "modify", "account", "lab", "set", "GrpTRESMins=cpu=-1")
    assert "your project has less time left" in shown[-1]
    assert "until others end" not in shown[-1]
    assert "fix: sshare " in shown[-1]


def test_a_squeue_without_the_option_me_works(site: Slurm, project: Path, tmp_path: Path) -> None:
    """An older squeue knows only --user. If squeue fails, the doctor shows its error."""
    old = tmp_path / "squeue"
    real = shutil.which("squeue")
    refuse = "echo \"squeue: unrecognized option '$1'\" >&2; exit 1"
    old.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" != --me ] || {{ {refuse}; }}; done\nexec {real} "$@"\n'
    )
    old.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    hold = ("--batch-sizes", "4", *SMALL, "--sbatch=--hold", "--name", "old")
    assert site.skinjob("submit", *hold, cwd=project, **env).returncode == 0
    output = site.skinjob("status", "runs/old", cwd=project, **env).stdout
    assert "\nSLURM answers\n" in output
    assert "held by you" in output
    assert re.match(r"squeue answers: \d+ job", check(site, "queue", cwd=project, **env)["found"])
    old.write_text(f"#!/bin/sh\n{refuse}\n")
    finding = check(site, "queue", cwd=project, **env)
    assert finding["verdict"] == "fail"
    assert "unrecognized option '--user=0'" in finding["found"]
    site.skinjob("cancel", "runs/old", cwd=project)
