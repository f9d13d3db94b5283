"""An option is declared once, in a field. Help, files, variables and checks come from the field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import import_path

ROOT = Path(__file__).parents[2]
NEW_OPTIONS = """
import runpy, sys
from dataclasses import dataclass
from skinjob import config

@dataclass(frozen=True, kw_only=True)
class Train(config.TrainConfig):
    momentum: float = config.declare(config.RECIPE, 0.9, "Momentum of the updates.", minimum=0)
    shuffle: str = config.declare(config.RECIPE, "epoch", "When.", choices=("epoch", "never"))

@dataclass(frozen=True, kw_only=True)
class Cluster(config.ClusterConfig):
    licenses: str | None = config.declare_word("licenses", "Licenses per job.", example="mat:1")

config.TrainConfig, config.ClusterConfig = Train, Cluster
"""


def run(code: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code with three more options in the records."""
    return subprocess.run(
        [sys.executable, "-c", NEW_OPTIONS + code, *arguments],
        cwd=cwd,
        env=os.environ | import_path() | env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def skinjob(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run("from skinjob.cli import main; main(sys.argv[1:])", *arguments, cwd=cwd, **env)


def test_help_completion_and_docs_have_a_new_option(tmp_path: Path) -> None:
    """Help shows it with its section and default, Tab offers its choices, and the docs have it."""
    text = skinjob("submit", "--help", cwd=tmp_path, COLUMNS="100").stdout
    recipe, site = text.split("What to train:")[1], text.split("Your site:")[1]
    assert "Momentum of the updates.  [default: 0.9]" in recipe.split("\n\n")[0]
    assert "--shuffle [epoch|never]" in recipe.split("\n\n")[0]
    assert "Licenses per job." in site.split("\n\n")[0]
    assert "--licenses" in skinjob("retry", "--help", cwd=tmp_path).stdout
    tab = {"_SKINJOB_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    offered = skinjob(cwd=tmp_path, COMP_WORDS="skinjob submit --shuffle ", **tab).stdout
    assert offered.split() == ["plain,epoch", "plain,never"]
    code = f"page = runpy.run_path({str(ROOT / 'docs/reference.py')!r})\n"
    code += "print(page['job_file'](), page['reference']())"
    made = run(code, cwd=tmp_path).stdout
    assert "# Momentum of the updates.\nmomentum = 0.9\n" in made
    assert '# Licenses per job.\n#licenses = "mat:1"\n' in made
    assert made.count("  --licenses") == 1


def test_files_and_variables_set_a_new_option(tmp_path: Path) -> None:
    """It is a key of its table and has a variable; `skinjob config` shows the source that won."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/default.toml").write_text("[train]\nmomentum = 0.5\nshuffle = 'never'\n")
    (tmp_path / "jobs/site.toml").write_text("[cluster]\nlicenses = 'mat:2'\n")
    env = {"SKINJOB_SUBMIT_SHUFFLE": "epoch"}
    tables = json.loads(skinjob("config", "--json", cwd=tmp_path, **env).stdout)
    assert tables["train"]["momentum"] == {"value": 0.5, "source": "jobs/default.toml"}
    assert tables["train"]["shuffle"] == {"value": "epoch", "source": "SKINJOB_SUBMIT_SHUFFLE"}
    assert tables["cluster"]["licenses"] == {"value": "mat:2", "source": "jobs/site.toml"}


@pytest.mark.parametrize(
    ("arguments", "content", "code", "message"),
    [
        (["--momentum", "-1"], "", 1, "momentum is -1.0, and must be at least 0"),
        (["--shuffle", "x"], "", 2, "Invalid value for '--shuffle': 'x'"),
        (["--licenses", "a b"], "", 1, "licenses is 'a b', and must be a name"),
        (["--sbatch=--licenses=x"], "", 1, "skinjob submit --licenses mat:1   # without"),
        ([], "[train]\nmomentum = 'x'", 1, "momentum is 'x', and must be a number"),
        ([], "[train]\nmomentum = -1", 1, "job file jobs/default.toml: momentum is -1"),
        ([], "[train]\nmomemtum = 1", 1, "use 'momentum'"),
    ],
)
def test_a_wrong_value_of_a_new_option_is_refused(
    arguments: list[str], content: str, code: int, message: str, tmp_path: Path
) -> None:
    """The error names it, on the command line and in a file."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/default.toml").write_text(content)
    result = skinjob("config", *arguments, cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (code, 2), result.stderr
    assert message in result.stderr


def test_sbatch_gets_a_new_option_of_the_site(project: Path) -> None:
    """The script has its line, it needs SLURM, and the error names it if sbatch refuses it."""
    tools = project / "tools"
    tools.mkdir()
    (tools / "sbatch").symlink_to("/bin/true")
    options = ("submit", "--batch-sizes", "4", "--licenses", "mat:2", "--dry-run")
    path = f"{tools}:{os.environ['PATH']}"
    output = skinjob(*options, "--allow-node-local", cwd=project, PATH=path).stdout
    assert "\n#SBATCH --licenses=mat:2\n" in output
    assert "\nmomentum = 0.9\n" in output
    assert "--licenses mat:2 asks for SLURM" in skinjob(*options, cwd=project, PATH="/no").stderr
    code = (
        "from skinjob.queues.slurm.refusals import refusal\n"
        "text = 'sbatch: error: Batch job submission failed: Invalid license specification'\n"
        "print(refusal(text, Cluster(licenses='mat:2')).message)"
    )
    assert "--licenses mat:2" in run(code, cwd=project).stdout
