"""Rules of a site, on a real SLURM with GPUs of a type and without accounting."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tomllib
from cluster import Slurm, running_slurm
from commands import refusal, wait_until
from trees import make_tree

from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep

SMALL = ("--batch-sizes", "4,8", "--cpus", "1", "--mem", "1")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster with GPUs of type a100 and without accounts."""
    state = tmp_path_factory.mktemp("site")
    with running_slurm(state, accounting="none", gpu_type="a100") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A folder that is ready for `skinjob submit`, with a Python that only records its call.

    A job ends at once: everything that a site changes happens before Python starts.
    """
    folder = tmp_path_factory.mktemp("project")
    make_tree(folder / "skin_cancer", num_train=8, num_test=4)
    shutil.copytree(weights.parent, folder / "weights")
    (folder / "noted").mkdir()
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" != -c ] || exec {sys.executable} "$@"\n'
        f"file={folder}/noted/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID\n"
        'echo "$INSIDE|$CUDA_VISIBLE_DEVICES|$SLURM_JOB_PARTITION|$*" > "$file"\n'
    )
    python.chmod(0o755)
    return folder


def array_of(project: Path, name: str) -> str:
    """Returns the id of a sweep's array."""
    jobs = Sweep(project / "runs" / name).info().jobs
    (array,) = {job.split("_")[0] for job in jobs.values()}
    return str(array)


def noted(slurm: Slurm, project: Path, array: str) -> list[list[str]]:
    """Waits for the two jobs of an array; returns how Python was called in each."""
    slurm.wait(array)
    return [(project / f"noted/{array}-{task}").read_text().split("|") for task in (0, 1)]


@pytest.mark.parametrize(
    ("flag", "tres"),
    [
        ("gpus-per-node", "TresPerNode=gres:gpu:a100:1"),
        ("gres", "TresPerNode=gres:gpu:a100:1"),
        ("gpus", "TresPerJob=gres:gpu:a100:1"),
        ("none", ""),
    ],
)
def test_every_gpu_flag_gives_each_job_a_gpu_in_its_container(
    site: Slurm, project: Path, flag: str, tres: str
) -> None:
    """With `--gpu-flag none` the job asks for no GPU, because the partition gives it."""
    python = f"unshare --mount env INSIDE=yes {project}/python"
    kind = ["--gpu-type", "a100"] if tres else []
    options = ("--gpu-flag", flag, *kind, "--python", python, "--name", flag)
    result = site.skinjob("submit", *SMALL, *options, cwd=project)
    assert result.returncode == 0, result.stderr
    array = array_of(project, flag)
    details = site.run(["scontrol", "show", "job", array], check=True).stdout
    assert details.count(tres) >= 1 if tres else "gres:gpu" not in details
    assert "WCKey" not in details
    for inside, gpu, _, words in noted(site, project, array):
        assert inside == "yes"
        assert (gpu in "0123" and bool(gpu)) == bool(tres)
        assert words.startswith("-u -m skinjob.submit.start ")


def test_submit_from_inside_a_job_gives_the_same_job(site: Slurm, project: Path) -> None:
    """Variables of that job, or of a shell, do not change the new job's partition or resources.

    SLURM_MEM_PER_CPU would break its srun; SBATCH_PARTITION would replace its own partition.
    """
    submit = f"{sys.executable} -m skinjob submit {' '.join(SMALL)} --name inside --gpu-flag gres"
    job = site.sbatch(
        f"export PYTHONPATH={':'.join(sys.path)} SBATCH_PARTITION=closed SBATCH_TIMELIMIT=1\n"
        f"cd {project} && {submit} --python {project}/python",
        "--partition=short",
        "--mem-per-cpu=500",
        "--gres=gpu:1",
        cwd=project,
    )
    site.wait(job)
    output = (project / f"job-{job}.out").read_text()
    assert "note     skinjob ignores SBATCH_PARTITION, SBATCH_TIMELIMIT: use" in output
    array = array_of(project, "inside")
    assert "TimeLimit=02:00:00" in site.run(["scontrol", "show", "job", array]).stdout
    for _, gpu, partition, _ in noted(site, project, array):
        assert (len(gpu), partition) == (1, "lab")


def test_filters_of_squeue_are_ignored(site: Slurm, project: Path) -> None:
    """SQUEUE_STATES in a shell's start-up file does not make a waiting run lost."""
    options = ("--name", "filtered", "--partition", "closed", "--python", f"{project}/python")
    assert site.skinjob("submit", *SMALL, *options, cwd=project).returncode == 0
    for run in Sweep(project / "runs/filtered").runs():  # waits so long that status asks squeue
        write_json(run.state_file, asdict(replace(run.state(), queued_utc="2020-01-01T00:00:00Z")))
    again = site.skinjob("submit", *SMALL, *options, cwd=project, SQUEUE_STATES="RUNNING")
    assert again.stdout.count("not repeated") == 2
    site.run(["scancel", array_of(project, "filtered")], check=True)


def test_a_refusal_of_sbatch_names_the_value_and_the_option(site: Slurm, project: Path) -> None:
    """sbatch says `Invalid feature specification`; the error adds which feature."""
    result = site.skinjob(
        "submit", *SMALL, "--constraint", "a100&zz", "--name", "refused", cwd=project
    )
    assert refusal(result) == (
        "sbatch refused: Invalid feature specification (--constraint 'a100&zz')"
    )


@pytest.mark.parametrize("lacking", ["", "sacctmgr", "scontrol"])
def test_init_site_writes_a_profile_that_submit_accepts(
    site: Slurm, project: Path, lacking: str
) -> None:
    """It chooses a partition that is up and has GPUs, also without sacctmgr or scontrol."""
    env = {"PATH": site.path_without(lacking)} if lacking else {}
    file = Path(f"sites/{lacking or 'all'}.toml")
    made = site.skinjob("init-site", "--out", file, cwd=project, **env)
    assert made.returncode == 0, made.stderr
    assert f"next:  skinjob doctor --site {file}" in made.stdout
    with (project / file).open("rb") as content:
        values = tomllib.load(content)["cluster"]
    assert (values["partition"], values["gpu_type"], values["cpus"]) == ("lab", "a100", 2)
    assert values["cluster"] == "slurm", (
        "so that it is refused without sbatch, and not trained here"
    )
    assert '# partition = "closed": is down' in (project / file).read_text()
    dry = site.skinjob("submit", "--site", file, "--dry-run", *SMALL[:2], cwd=project)
    assert "#SBATCH --gpus-per-node=a100:1\n" in dry.stdout


def test_init_site_takes_a_partition_by_name(site: Slurm, project: Path) -> None:
    """It respects the partition's time limit, and replaces a profile only with --force."""
    short = ("init-site", "--partition", "short", "--out", "sites/short.toml")
    assert site.skinjob(*short, cwd=project).returncode == 0
    assert "time_min = 30\n" in (project / "sites/short.toml").read_text()
    assert refusal(site.skinjob(*short, cwd=project)) == "sites/short.toml exists already"
    assert site.skinjob(*short, "--force", cwd=project).returncode == 0
    other = site.skinjob(*short[:1], "--partition", "shrt", "--out", "x.toml", cwd=project)
    assert "must be one of lab, short, closed" in refusal(other)


def test_init_site_lists_the_accounts_of_the_user(slurm: Slurm, project: Path) -> None:
    """If the cluster has accounts, the user's accounts and QOS are in comments."""
    assert slurm.skinjob("init-site", "--out", "sites/dbd.toml", cwd=project).returncode == 0
    text = (project / "sites/dbd.toml").read_text()
    assert "# account: root; the first is the default\n" in text
    assert "# qos: normal; the first is the default\n" in text


def test_init_site_without_slurm_says_so(site: Slurm, project: Path) -> None:
    """On a laptop it is an error and writes nothing."""
    path = site.path_without("sinfo")
    result = site.skinjob("init-site", "--out", "sites/none.toml", cwd=project, PATH=path)
    assert "there is no sinfo on PATH" in refusal(result)
    assert not (project / "sites/none.toml").exists()


def test_a_preempted_job_with_no_requeue_fails_with_the_reason(site: Slurm, project: Path) -> None:
    """With --no-requeue a preempted job does not go back into the queue."""
    options = ("--batch-sizes", "4", "--epochs", "2000", "--cpus", "1", "--mem", "2")
    words = (*options, "--device", "cpu", "--no-requeue", "--name", "once")
    assert site.skinjob("submit", *words, cwd=project).returncode == 0
    (run,) = Sweep(project / "runs/once").runs()
    wait_until(lambda: run.state().status == "running")
    job = str(run.sweep.info().jobs[run.name])
    site.run(["scancel", "--signal=USR2", job], check=True)
    site.wait(job)
    state = Run(run.folder).state()
    assert (state.status, state.failure) == ("failed", "preempted")
    assert "had to make room for another job after epoch" in str(state.reason)
    assert "may not start again (--no-requeue)" in str(state.reason)
    assert "Restarts=0" in site.run(["scontrol", "show", "job", job], check=True).stdout
