"""Site profiles, which of several values is used, and what sbatch gets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import SKINJOB, refusal, skinjob
from terminal import terminal

from skinjob.commands.sources import DEFAULT_SITE, SITE_TABLES, read_file
from skinjob.config import ClusterConfig, reserved_flags
from skinjob.doctor.profile import choose, profile_text
from skinjob.errors import ConfigError
from skinjob.queues.slurm.environment import slurm_environment
from skinjob.queues.slurm.queue import SlurmQueue
from skinjob.queues.slurm.refusals import refusal as refusal_of
from skinjob.queues.slurm.script import sbatch_script
from skinjob.queues.slurm.site import Rights, Site, read_sinfo
from skinjob.submit.checks import python_note
from skinjob.sweeps.layout import Sweep

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "jobs/sites").glob("*.toml"))
GOLDEN = ROOT / "tests/golden/sbatch"


def profile(file: Path) -> ClusterConfig:
    values = read_file("site profile", file, SITE_TABLES).values
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return ClusterConfig(**{**values, **lists})


def config(cwd: Path, *arguments: str, **env: str) -> dict[str, dict[str, dict[str, object]]]:
    result = skinjob("config", "--json", *arguments, cwd=cwd, **env)
    assert result.returncode == 0, result.stderr
    values: dict[str, dict[str, dict[str, object]]] = json.loads(result.stdout)
    return values


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_the_golden_script_of_an_example_profile(
    file: Path, golden: Callable[[str, str], None]
) -> None:
    """The sbatch script of each example profile is exactly the expected script."""
    cluster = replace(profile(file), cluster="slurm")
    if not cluster.python:
        cluster = replace(cluster, python="PYTHON")
    script = sbatch_script(Sweep(Path("/RUNS/sweep")), 4, cluster)
    golden(f"sbatch/{file.stem}.sh", script)


def test_the_golden_script_of_options(project: Path, golden: Callable[[str, str], None]) -> None:
    """The sbatch script has what the options ask for, and nothing else."""
    result = skinjob(
        "submit", "--cluster", "slurm", "--batch-sizes", "2,4,8", "--dry-run", "--name", "s",
        "--partition", "gpu", "--account", "lab", "--qos", "short", "--cpus", "3", "--mem", "1.5",
        "--time", "45", "--setup", "module load cuda", "--array-parallelism", "2",
        "--python", "/opt/venv/bin/python", "--allow-node-local",
        cwd=project, PATH=with_sbatch(project),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    script = result.stdout.split("# job script\n")[1].split("\nnothing was made")[0]
    golden("sbatch/of-options.sh", script.replace(str(project), "PROJECT"))


def with_sbatch(folder: Path) -> str:
    """Returns a PATH whose sbatch refuses everything."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tools / "sbatch").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}"


def test_every_golden_script_has_a_profile() -> None:
    """No golden script stays when its example profile is removed."""
    scripts = {file.stem for file in GOLDEN.glob("*.sh")}
    assert scripts == {file.stem for file in PROFILES} | {"of-options"}


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({}, "--gpus-per-node=1"),
        ({"gpu_type": "a100"}, "--gpus-per-node=a100:1"),
        ({"gpu_flag": "gres"}, "--gres=gpu:1"),
        ({"gpu_flag": "gpus", "gpu_type": "a100"}, "--gpus=a100:1"),
        ({"mem_flag": "mem-per-cpu", "mem_gb": 1, "cpus": 3}, "--mem-per-cpu=342M"),
        ({"mem_flag": "mem-per-gpu", "mem_gb": 1.5}, "--mem-per-gpu=1536M"),
        ({"mem_flag": "mem-per-gpu", "gpus": 0}, "--mem=8192M"),
        ({"requeue": False}, "--no-requeue"),
    ],
)
def test_the_script_asks_for_gpu_and_memory_with_the_site_s_flags(
    asked: dict[str, object], line: str
) -> None:
    """Each is asked for with a single flag, and memory is never rounded down."""
    script = sbatch_script(Sweep(Path("/RUNS/sweep")), 1, ClusterConfig(**asked))
    assert f"#SBATCH {line}\n" in script
    flags = [text.split("=")[0] for text in script.splitlines() if text.startswith("#SBATCH")]
    assert sum("mem" in flag for flag in flags) == 1
    assert sum(flag.endswith(("gpus", "gpus-per-node", "gres")) for flag in flags) <= 1
    assert not {"#SBATCH --wckey", "#SBATCH --mail-type"} & set(flags)


@pytest.mark.parametrize("flag", reserved_flags())
def test_a_flag_that_skinjob_sets_is_refused_with_the_option_for_it(flag: str) -> None:
    """Otherwise sbatch would get two values. The beginning of a flag is refused too."""
    for given in (f"--{flag}=1", f"--{flag[:-1]}"):
        with pytest.raises(ConfigError, match="skinjob sets") as raised:
            ClusterConfig(sbatch=(given,))
        assert "skinjob submit" in raised.value.fix
        assert not reserved_flags()[flag] or "--" in raised.value.fix


@pytest.mark.parametrize(
    "flags", [("-C x",), ("--hint",) * 2, ("--a b",), ("hint=x",), ("--hint=a\n#SBATCH",), ("",)]
)
def test_an_sbatch_flag_must_be_a_single_word_and_given_once(flags: tuple[str, ...]) -> None:
    """A flag that would add a line to the script, or be lost, is refused."""
    with pytest.raises(ConfigError, match="sbatch is "):
        ClusterConfig(sbatch=flags)


def test_the_first_source_with_a_value_wins_and_is_named(tmp_path: Path) -> None:
    """The order is: flag, variable, job file, site profile, own profile, built in."""
    (tmp_path / "jobs/sites").mkdir(parents=True)
    (tmp_path / "own/skinjob").mkdir(parents=True)
    cpus, mem, time, qos = "cpus = {}\n", "mem_gb = {}\n", "time_min = {}\n", "qos = 'q{}'\n"
    (tmp_path / "jobs/default.toml").write_text(
        "[cluster]\n" + (cpus + mem + time).format(13, 13, 13)
    )
    (tmp_path / "jobs/site.toml").write_text(
        "[cluster]\n" + (cpus + mem + time + qos).format(14, 14, 14, 14)
    )
    own = "account = 'mine'\n" + (cpus + mem + time + qos).format(15, 15, 15, 15)
    (tmp_path / "own/skinjob/site.toml").write_text("[cluster]\n" + own)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "own"), "SKINJOB_SUBMIT_MEM": "2"}
    values = config(tmp_path, "--cpus", "1", SKINJOB_SUBMIT_CPUS="2", **env)["cluster"]
    pairs = {name: tuple(value.values()) for name, value in values.items()}
    assert pairs["cpus"] == (1, "--cpus")
    assert pairs["mem_gb"] == (2, "SKINJOB_SUBMIT_MEM")
    assert pairs["time_min"] == (13, "jobs/default.toml")
    assert pairs["qos"] == ("q14", "jobs/site.toml")
    assert pairs["account"] == ("mine", f"{tmp_path}/own/skinjob/site.toml")
    assert pairs["partition"] == (None, "built in")

    (tmp_path / "jobs/sites/other.toml").write_text("[cluster]\nqos = 'other'\n")
    values = config(tmp_path, "--site", "other", "--job", "jobs/default.toml", **env)["cluster"]
    assert values["qos"] == {"value": "other", "source": "jobs/sites/other.toml"}
    assert values["cpus"]["value"] == 13  # the job file wins in any order of the options


def test_a_relative_config_home_is_ignored(tmp_path: Path) -> None:
    """The user's own profile is never read from the working folder."""
    for folder, qos in (("own", "wrong"), (".config", "right")):
        (tmp_path / folder / "skinjob").mkdir(parents=True)
        (tmp_path / folder / "skinjob/site.toml").write_text(f"[cluster]\nqos = '{qos}'\n")
    values = config(tmp_path, XDG_CONFIG_HOME="own", HOME=str(tmp_path))["cluster"]
    assert values["qos"]["value"] == "right"


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ([], "[cluster]\npartion = 'x'", "site profile jobs/site.toml: unknown key in [cluster]"),
        ([], "[train]\nepochs = 2", "site profile jobs/site.toml: unknown table: 'train'"),
        ([], "[cluster]\nsbatch = 5", "site profile jobs/site.toml: sbatch is 5, and must be a"),
        ([], "[cluster]\ngpu_flag = 'x'", "site profile jobs/site.toml: Invalid value for"),
        (["--site", "no"], "", "site profile jobs/sites/no.toml: no such file"),
    ],
)
def test_an_error_in_a_profile_names_the_profile(
    tmp_path: Path, arguments: list[str], content: str, message: str
) -> None:
    """A value can come from several places; the error names the right place."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/site.toml").write_text(content)
    result = skinjob("config", *arguments, cwd=tmp_path)
    assert message in refusal(result, code=2 if "Invalid" in message else 1)


@pytest.mark.parametrize("command", ["config", "doctor", "submit"])
def test_the_fix_of_a_bad_value_is_where_the_value_is_set(tmp_path: Path, command: str) -> None:
    """The fix opens the profile, unsets the variable, or changes the option."""
    (tmp_path / "my q.toml").write_text("[cluster]\naccount = 'a b'\ntime_min = 4\n")
    result = skinjob(command, "--site", "my q.toml", cwd=tmp_path)
    assert refusal(result).startswith("site profile my q.toml: time is 4, and must be 5 to 525600")
    assert result.stderr.endswith("fix:   ${EDITOR:-vi} 'my q.toml'\n")
    result = skinjob(command, "--site", "my q.toml", cwd=tmp_path, SKINJOB_SUBMIT_TIME="3")
    assert refusal(result).startswith("SKINJOB_SUBMIT_TIME: time is 3, and must be")
    assert "fix:   unset SKINJOB_SUBMIT_TIME " in result.stderr
    result = skinjob(command, "--site", "my q.toml", "--time", "2", cwd=tmp_path)
    assert refusal(result).startswith("time is 2, and must be")
    site = "--site 'my q.toml' " if command == "submit" else ""
    assert f"fix:   skinjob submit {site}--time 120\n" in result.stderr


def test_config_escapes_control_characters(tmp_path: Path) -> None:
    """A profile of another user cannot change colours or move text on the screen."""
    (tmp_path / "q.toml").write_text('[cluster]\nsetup = ["a\\u001b[31mb\\u0007"]\n')
    result = skinjob("config", "--site", "q.toml", cwd=tmp_path)
    assert " a\\x1b[31mb\\x07 " in result.stdout
    assert result.stdout.replace("\n", "").isprintable()


def test_config_keeps_paths_whole_in_a_narrow_terminal(tmp_path: Path) -> None:
    """A path can be copied from any terminal; other long values continue on the next line."""
    path = "/shared/group/images/of/last/year/skin_cancer"
    setup = " ".join(f"word{number}" for number in range(20))
    with terminal(
        *(*SKINJOB, "config", "--data", path, "--setup", setup), cwd=tmp_path, columns=50, lines=90
    ) as narrow:
        narrow.show("exit 0")
        joined = narrow.tmux(
            "capture-pane", "-p", "-J"
        )  # with long lines joined, as a user copies them
    assert f" {path}  --data" in joined
    assert "word0 word1 " in joined
    assert setup not in joined
    assert {f"word{number}" for number in range(20)} <= set(joined.split())
    assert sum(len(line.rstrip()) > 50 for line in joined.splitlines()) == 2  # data and weights


def test_git_leaves_the_profile_of_this_cluster_alone() -> None:
    """The profile that init-site writes is for a cluster and a user, so Git ignores it."""
    assert f"/{DEFAULT_SITE}" in (ROOT / ".gitignore").read_text().splitlines()


def test_config_is_as_strict_as_submit(tmp_path: Path) -> None:
    """`config` refuses what submit would refuse."""
    result = skinjob("config", "--lr", "0.1,0", cwd=tmp_path)
    assert refusal(result) == "lr is 0.0, and must be a number above 0"


SINFO = """\
CLUSTER: lab
cpu*|up|3-00:00:00|64|256000|(null)|(null)|9|idle
gpu|up|1-00:00:00|32+|128000+|gpu:v100:2(S:0-1)|nvlink|3|mixed
gpu|up|1-00:00:00|64|512000|gpu:a100:4|nvlink,ib|2|idle
gpu|up|1-00:00:00|64|512000|gpu:h100:8|nvlink|1|down*
debug|up|10:00|4|2000|gpu:v100:1|(null)|1|idle
old|down|infinite|32|128000|gpu:k80:8|(null)|50|idle
dense|up|10:00|8|64000|gpu:a100:4|(null)|1|idle
thin|up|10:00|2|64000|gpu:a100:4|(null)|1|idle
"""


def test_a_profile_takes_a_partition_that_has_gpus_and_is_up() -> None:
    """The default has no GPUs, a larger partition is down, and the node with H100s is down."""
    site = Site(partitions=read_sinfo(SINFO), rights=Rights(), has_gpu_flags=True)
    choice = choose(site)
    assert choice.values == {
        "cluster": "slurm",
        "partition": "gpu",
        "gpu_type": "a100",
        "time_min": 120,
        "mem_gb": 8,
        "cpus": 4,
    }
    assert "others: v100 (6)" in choice.entries["gpu_type"][1]
    assert "h100" not in profile_text(choice)
    assert "constraint: ib, nvlink" in profile_text(choice)


def test_a_profile_asks_a_small_partition_for_no_more_than_it_has() -> None:
    """If the usual values are above the partition's limits, the profile has smaller values."""
    site = Site(partitions=read_sinfo(SINFO), rights=Rights(), has_gpu_flags=False)
    values = choose(site, "debug").values
    assert (values["time_min"], values["mem_gb"], values["cpus"]) == (10, 1.5, 4)
    assert values["gpu_flag"] == "gres"


@pytest.mark.parametrize(
    ("partition", "cpus", "why"),
    [
        ("dense", 2, "the largest node of dense has 8, 2 for each of its 4 GPUs"),
        ("thin", 1, "the largest node of thin has 2, 0 for each of its 4 GPUs"),
        ("debug", 4, "the largest node of debug has 4"),
        ("cpu", 4, "the largest node of cpu has 64"),
    ],
)
def test_a_profile_takes_the_cores_that_belong_to_one_gpu(
    partition: str, cpus: int, why: str
) -> None:
    """With more cores, jobs would wait for cores while GPUs are free; a job needs at least 1."""
    choice = choose(Site(read_sinfo(SINFO), Rights(), has_gpu_flags=True), partition)
    assert choice.entries["cpus"] == (cpus, f"cores; {why}")


def test_a_profile_names_an_account_that_the_partition_accepts() -> None:
    """If the user's default account would be refused, the profile has another of the user's."""
    rights = Rights(accounts=("lab", "ml", "art"), qos=("normal",))
    gpu = read_sinfo(SINFO)[1]
    for allowed, account in (((), None), (("lab",), None), (("art", "ml"), "ml")):
        site = Site((replace(gpu, accounts=allowed),), rights, has_gpu_flags=True)
        assert choose(site).values.get("account") == account


@pytest.mark.parametrize(
    ("reason", "asked", "message", "fix"),
    [
        ("Invalid feature specification", {"constraint": "zz"}, "--constraint zz", "%f"),
        ("Invalid qos specification", {"qos": "zz"}, "--qos zz", "sacctmgr"),
        ("Requested reservation is invalid", {"reservation": "zz"}, "--reservation zz", "scontrol"),
        ("Invalid node name specified", {"exclude": "zz"}, "--exclude zz", "sinfo --Node"),
        ("Invalid --mail-type specification", {"mail": "a"}, "--mail-type END,FAIL", "man sbatch"),
        ("Memory specification can not be satisfied", {}, "--mem 8, --mem-flag mem", "%m"),
        ("Invalid license specification", {"sbatch": ("--licenses=z",)}, "=--licenses=z", "--help"),
    ],
)
def test_a_refusal_names_the_value_that_sbatch_refused(
    reason: str, asked: dict[str, object], message: str, fix: str
) -> None:
    """sbatch says only which kind of value is wrong; the error adds the option and its value."""
    text = f"failed:\nsbatch: error: Batch job submission failed: {reason}"
    error = refusal_of(text, ClusterConfig(**asked))
    assert error.message.startswith(f"sbatch refused: {reason} (")
    assert message in error.message
    assert fix in error.fix


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["Your last session timed out", "Batch job submission failed: Access denied"],
            "sbatch refused: Access denied",
        ),
        (
            ["Welcome", "Batch job submission failed: Socket timed out on send/recv operation"],
            "SLURM did not say whether it took the jobs: Socket timed out on send/recv operation",
        ),
        (
            ["Welcome", "Memory specification can not be satisfied",
             "Batch job submission failed: Requested node configuration is not available"],
            "sbatch refused: Memory specification can not be satisfied (--mem 8, --mem-flag mem)",
        ),
        (
            ["Take more cores", "cli_filter plugin terminated with error"],
            "sbatch refused: Take more cores",
        ),
        (["Batch job submission failed: Unspecified error"], "sbatch refused: Unspecified error"),
        (["--mail-type needs a word", "Try again"],
         "sbatch refused: --mail-type needs a word; Try again"),
    ],
)  # fmt: skip
def test_the_reason_of_sbatch_is_found_among_other_lines(lines: list[str], message: str) -> None:
    """Lines of a plugin or wrapper are not the reason, unless sbatch gives no other."""
    output = "".join(f"sbatch: error: {line}\n" for line in lines)
    assert refusal_of(f"a wrapper speaks\n{output}", ClusterConfig()).message.startswith(message)


def test_variables_of_a_job_are_hidden_from_sbatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submit from inside a job gives the same job, on the same cluster."""
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "SQUEUE_STATES"):
        monkeypatch.setenv(name, "7")
    for name in ("SLURM_CONF", "SLURM_CLUSTERS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "x")
    left = {name for name in slurm_environment() if name.startswith(("S", "CUDA"))}
    assert left & {name for name in left if name.startswith(("SLURM", "SBATCH", "SQ", "CUDA"))} == {
        "SLURM_CONF",
        "SLURM_CLUSTERS",
    }


@pytest.mark.parametrize(
    ("setup", "python", "words"),
    [
        ((), "PYTHON -IS", "lacks skinjob"),
        (("export X=1",), None, None),
        (("module load torch",), "PYTHON -IS", "was not checked: on this machine it says: "),
        (
            ("printf 'Run conda init.\\n\\n  then again\\nIMPORTANT: close it\\n' >&2; false",),
            "PYTHON -IS",
            "it says: Run conda init.; then again; IMPORTANT: close it",
        ),
        ((), "apptainer-of-nodes exec x.sif python3", "apptainer-of-nodes"),
        (("exit 3",), None, "ends with exit code 3"),
    ],
    ids=["lacking", "whole", "module", "conda", "container", "exit"],
)
def test_submit_tries_the_python_of_the_jobs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setup: tuple[str, ...],
    python: str | None,
    words: str | None,
) -> None:
    """A Python that lacks a package is an error; if it cannot be tried here, that is a note."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    cluster = ClusterConfig(setup=setup, python=python and python.replace("PYTHON", sys.executable))
    if words and words.startswith("lacks"):
        with pytest.raises(ConfigError, match=words):
            python_note(cluster, SlurmQueue())
    elif words is None:
        assert python_note(cluster, SlurmQueue()) is None
    else:
        assert words in str(python_note(cluster, SlurmQueue()))
