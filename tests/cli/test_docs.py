"""README and docs/ are true: their commands run as written, and every link and file exists."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm
from commands import all_commands, import_path, only_sweep, wait_for
from local_server import Site, serving
from login_node import login_node
from safetensors.numpy import load_file
from state_dict_maker import write_old_layout
from trees import make_tree
from untrained import write_untrained

from skinjob.queues.slurm.reasons import REASONS
from skinjob.sweeps.records import METRICS, TESTS, Failure, Status

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/*.md"))}
NOT_COMMANDS = {"does"}  # a sentence in sample output
STORY = ("Set up", "On the laptop", "On the login node", "The report")  # README's sections
ON_SLURM = "your-site.md"  # its commands need SLURM; those of the other pages do not


def commands(section: str) -> list[str]:
    """Returns the commands of a section of README."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.S | re.M)
    return commands_in(text)


def commands_in(text: str) -> list[str]:
    """Returns the lines after a `$` in the console blocks of a text."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.S | re.M)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def login(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The folder in which a login node's users start, and the folder of the tools that reach it."""
    (tmp_path / "login").mkdir()
    with login_node(tmp_path / "login", tmp_path / "ssh") as tools:
        yield tmp_path / "login", tools


def run(line: str, cwd: Path, **env: str) -> str:
    """Runs a line of the docs, with `skinjob` as the code under test; returns the output."""
    result = subprocess.run(
        ["sh", "-c", _unmade(line)],
        cwd=cwd,
        env=os.environ | {"PATH": f"{tools_in(cwd)}:{os.environ['PATH']}"} | import_path() | env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    return result.stdout


def tools_in(folder: Path) -> Path:
    """Returns a folder whose `skinjob` is the code under test."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    (tools / "skinjob").write_text(f'#!/bin/sh\nexec {sys.executable} -m skinjob "$@"\n')
    (tools / "skinjob").chmod(0o755)
    return tools


def _unmade(line: str) -> str:
    """Returns the command that `make TARGET` would run after it has made a .venv."""
    if not line.startswith("make "):
        return line
    return make(*line.split()[1:], "--dry-run").splitlines()[-1].removeprefix(".venv/bin/")


def make(*arguments: str) -> str:
    """Returns the output of `make`, also if a make runs the tests."""
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.train
def test_commands_run_as_written(tmp_path: Path, login: tuple[Path, Path]) -> None:
    """README's commands from laptop to report work as written, and so do those of other pages."""
    home, tools = login
    laptop, cluster = tmp_path / "laptop", home / "skinjob"
    laptop.mkdir()
    (cluster / "weights").mkdir(parents=True)
    tensors = load_file(write_untrained(tmp_path / "made.safetensors").path)
    made = write_old_layout(tmp_path / "made.pth", tensors)
    content = made.read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    made.rename(tmp_path / name)
    with serving(Site(files={"/" + name: content})) as site:
        source, path = f"{site.base}/{name}", f"{tools}:{tools_in(laptop)}:{os.environ['PATH']}"
        for line in commands("On the laptop"):
            ours = line.replace("USER@", "")
            run(ours, laptop, PATH=path, SKINJOB_FETCH_WEIGHTS_SOURCE=source)

    make_tree(cluster / "skin_cancer", num_train=130, num_test=3)
    shutil.copytree(ROOT / "jobs", cluster / "jobs")
    for line in commands("On the login node"):
        run(line, cluster, SKINJOB_SUBMIT_CLUSTER="local", SKINJOB_SUBMIT_EPOCHS="1")
    sweep = only_sweep(cluster / "runs")
    assert [run.name for run in sweep.runs()] == [
        "bs0032-lr0.01-seed0",
        "bs0064-lr0.01-seed0",
        "bs0128-lr0.01-seed0",
        "bs0256-lr0.01-seed0",
    ]
    wait_for(sweep, "done")
    for line in commands("The report"):
        run(line, cluster)
    assert (sweep.report_folder / "comparison.png").exists()

    done = {line for section in STORY for line in commands(section)}
    pages = [README, *(text for name, text in PAGES.items() if name != ON_SLURM)]
    for line in dict.fromkeys(line for text in pages for line in commands_in(text)):
        if line in done:
            continue
        # Training was tested above: these commands check everything and then queue nothing.
        named = line.replace("SWEEP", sweep.name).replace("RUN", sweep.runs()[0].name)
        local = {"SKINJOB_SUBMIT_CLUSTER": "local", "SKINJOB_SUBMIT_DRY_RUN": "1"}
        run(named, cluster, SKINJOB_FETCH_WEIGHTS_SOURCE=str(tmp_path / name), **local)


def test_your_site_runs_as_written(project: Path, slurm: Slurm) -> None:
    """The commands of the page on sites work on a real SLURM, in their order."""
    shutil.copytree(ROOT / "jobs", project / "jobs")
    path = f"{tools_in(project)}:{os.environ['PATH']}"
    env = {"PATH": path, **import_path(), "SKINJOB_SUBMIT_BATCH_SIZES": "4"}
    for line in commands_in(PAGES[ON_SLURM]):
        result = slurm.run(["sh", "-c", line], cwd=project, env=env)
        assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    assert (project / "jobs/site.toml").exists()


def test_set_up_is_two_make_targets() -> None:
    """README's two commands exist, and `make` alone lists every target of the Makefile."""
    assert commands("Set up") == ["make demo", "make test"]
    listed = make()
    for target in ("fetch-weights", "bundle", "demo", "test", "bench", "check", "docs", "clean"):
        assert f"make {target} " in listed


def test_the_reference_is_what_help_prints() -> None:
    """docs/commands.md has the exact help of every command; `make docs` writes it again."""
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    written = reference["reference"]()
    assert PAGES["commands.md"] == written, "make docs"
    assert (ROOT / "jobs/default.toml").read_text() == reference["job_file"](), "make docs"
    assert len(re.findall("^  --epochs ", written, re.M)) == 1, "submit's options are listed once"
    for command in all_commands():
        assert f"### skinjob {command}\n" in written


def test_every_command_and_option_of_a_page_exists() -> None:
    """No page names a command or option that skinjob does not have."""
    params = [param for command in all_commands().values() for param in command.params]
    options = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    for name, text in {"README.md": README, **PAGES}.items():
        code = "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.S))
        for command, words in re.findall(r"skinjob ([a-z][a-z-]*)((?: [^\n`]*)?)", code):
            assert command in {*all_commands(), *NOT_COMMANDS}, f"{name}: skinjob {command}"
            unknown = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]+", words)) - options - {"--help"}
            assert not unknown, f"{name}: skinjob {command}: {unknown}"


@pytest.mark.parametrize(("file", "columns"), [("metrics.csv", METRICS), ("tests.csv", TESTS)])
def test_every_column_is_explained(file: str, columns: dict[str, str]) -> None:
    """The docs explain every column of a CSV file, with the same words as the code."""
    section = PAGES["files.md"].split(f"### {file}\n")[1].split("\n### ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)) == columns


def test_every_status_failure_and_reason_is_explained() -> None:
    """Every word that `skinjob status` prints about a run has a line in the docs."""
    page = PAGES["when-a-job-fails.md"]
    assert set(re.findall(r"^\| (\w+) \|", page, re.M)) == {"status", "failure", *Status}
    assert re.findall(r"^\| `([^`]+)` \|", page, re.M) == list(Failure)
    explained = re.findall(r"^\| (`[^|]+) \|", PAGES["troubleshooting.md"], re.M)
    words = set(re.findall(r"`([^`]+)`", " ".join(explained)))
    for reason in REASONS[1:]:  # the first is None
        assert [word for word in words if re.fullmatch(reason.pattern, word)], reason.pattern


def test_links_and_file_tree_are_true() -> None:
    """No link is broken, and README lists every folder of the package."""
    for folder, text in [(ROOT, README), *((ROOT / "docs", text) for text in PAGES.values())]:
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).exists(), target
    assert set(PAGES) <= set(re.findall(r"\]\(docs/([^)]+)\)", README))
    (tree,) = re.findall(r"## The files\n\n```text\n(.*?)```", README, re.S)
    listed = set(re.findall(r"(?:^|(?<=/ ))[\w./*]+(?= )", tree, re.M))
    assert not {pattern for pattern in listed if not list(ROOT.glob(pattern))}
    folders = {f"skinjob/{path.name}/" for path in (ROOT / "skinjob").iterdir() if path.is_dir()}
    assert folders - {"skinjob/__pycache__/"} <= listed
