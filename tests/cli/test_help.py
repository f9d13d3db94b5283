"""Help, completion and pipes, which a new user meets first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import all_commands, import_path, skinjob
from sweep_maker import draw_sweep

from skinjob.cli import TASKS
from skinjob.config import SECTIONS

SHELL_CALLS = {
    "bash": "eval \"$(skinjob completion bash)\"; COMP_WORDS=({words} ''); "
    'COMP_CWORD={number}; _skinjob_completion skinjob; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "skinjob completion fish | source; complete --do-complete '{words} '",
}


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """A PATH on which `skinjob` is the code under test."""
    tool = tmp_path / "bin" / "skinjob"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m skinjob "$@"\n')
    tool.chmod(0o755)
    return f"{tool.parent}:{os.environ['PATH']}"


def in_shell(shell: str, line: str, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in a shell, with this PATH."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [shell, "-c", line],
        cwd=cwd,
        env=ours | {"PATH": path} | import_path(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def completed(shell: str, words: str, cwd: Path, path: str) -> list[str]:
    """Returns what Tab offers in a real shell after *words* and a space."""
    call = SHELL_CALLS[shell].format(words=words, number=len(words.split()))
    result = in_shell(shell, call, cwd, path)
    return sorted(
        line.split("\t")[0] for line in result.stdout.splitlines()
    )  # fish adds a help text


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELL_CALLS)
def test_tab_completes_commands_values_sweeps_and_runs(
    shell: str, tmp_path: Path, shell_path: str
) -> None:
    """In a real shell, Tab offers commands, the values of an option, sweeps and runs."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}: apt-get install {shell}")
    draw_sweep(tmp_path / "runs" / "monday", batch_sizes=(32, 64), epochs=1)
    draw_sweep(tmp_path / "other" / "tuesday", batch_sizes=(32,), epochs=1)

    assert set(all_commands()) <= set(completed(shell, "skinjob", tmp_path, shell_path))
    assert completed(shell, "skinjob submit --train", tmp_path, shell_path) == ["all", "head"]
    assert completed(shell, "skinjob report", tmp_path, shell_path) == ["monday"]
    assert completed(shell, "skinjob report --runs other", tmp_path, shell_path) == ["tuesday"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_for_the_user_s_shell(shell: str, tmp_path: Path, shell_path: str) -> None:
    """Without an argument, `skinjob completion` prints the script for $SHELL and how to keep it."""
    script = skinjob("completion", cwd=tmp_path, SHELL=f"/usr/bin/{shell}").stdout
    assert script == skinjob("completion", shell, cwd=tmp_path).stdout
    assert script.splitlines()[-1].startswith(
        f"# in every new shell: skinjob completion {shell} > "
    )
    if shutil.which(shell):  # the shell reads it without an error
        result = in_shell(shell, f"skinjob completion {shell} | {shell} -n", tmp_path, shell_path)
        assert (result.returncode, result.stderr) == (0, "")


def test_skinjob_alone_lists_every_command_by_task(tmp_path: Path) -> None:
    """`skinjob` alone lists each command in its section, on a single line at 80 columns."""
    listed = skinjob(cwd=tmp_path, COLUMNS="80").stdout
    sections = re.split(r"^(?!Options)(\S.*):$", listed, flags=re.M)
    titles = sections[1::2]
    assert titles == list(TASKS)
    lines = [line for text in sections[2::2] for line in text.splitlines() if line]
    assert [line.split()[0] for line in lines] == [
        name for names in TASKS.values() for name in names
    ]
    commands = all_commands()
    for name, sentence in (line.split(maxsplit=1) for line in lines):
        assert (commands[name].help or "").startswith(f"{sentence}."), "the whole first sentence"


def test_every_option_of_submit_has_its_section(tmp_path: Path) -> None:
    """The options of the recipe, the job and the site have titles, and each is listed once."""
    text = skinjob("submit", "--help", cwd=tmp_path).stdout
    *sections, call = [part for part in text.split("\n\n") if re.match(r"\S.*:\n", part)]
    assert [part.split(":")[0] for part in sections] == list(SECTIONS)
    listed = [re.findall(r"^  (?:-h, )?(--[\w-]+)", part, re.M) for part in (*sections, call)]
    flags = [flag for group in listed for flag in group]
    assert len(flags) == len(set(flags)) == len(all_commands()["submit"].params) + 1
    assert listed[-1] == ["--job", "--dry-run", "--wait", "--help"]


def default_of(flag: str, text: str) -> str:
    """Returns the default that a help text shows for an option, and its source."""
    (line,) = re.findall(rf"^  {flag} .*?(?=\n  -|\n\n|\Z)", text, re.M | re.S)
    (note,) = re.findall(r"\[default: \(?(.*?)\)?\]", " ".join(line.split()))
    return note


def test_help_shows_the_source_of_a_default(tmp_path: Path) -> None:
    """Help names the source of a default: built in, job file, site profile or variable."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/default.toml").write_text("[train]\nseeds = [0, 1]\n")
    (tmp_path / "jobs/site.toml").write_text('[cluster]\npartition = "gpu"\ngpu_type = "a100"\n')
    text = skinjob(
        "submit", "--help", cwd=tmp_path, SKINJOB_SUBMIT_MEM="16", SKINJOB_SUBMIT_GPU_TYPE="v100"
    ).stdout
    assert default_of("--seeds", text) == "0, 1; from jobs/default.toml"
    assert default_of("--partition", text) == "gpu; from jobs/site.toml"
    assert default_of("--gpu-type", text) == "v100; from SKINJOB_SUBMIT_GPU_TYPE"
    assert default_of("--mem", text) == "16; from SKINJOB_SUBMIT_MEM"
    assert default_of("--epochs", text) == "20"
    (tmp_path / "my.toml").write_text("[train]\nseeds = [7]\n")
    text = skinjob("submit", "--job", "my.toml", "--help", cwd=tmp_path).stdout
    assert default_of("--seeds", text) == "7; from my.toml"


def test_help_works_while_a_job_file_is_wrong(tmp_path: Path) -> None:
    """A user who has to correct a job file can still read which options exist."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/default.toml").write_text("[train]\nsedes = [0]\n")
    result = skinjob("submit", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert default_of("--seeds", result.stdout) == "0"
    assert "unknown key in [train]: 'sedes'" in " ".join(result.stdout.split())


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_help_fits_the_terminal(columns: int, tmp_path: Path) -> None:
    """No line of any help is wider than the terminal, or than 100 columns."""
    code = (
        "from skinjob.cli import cli\n"
        "for words in ([], *([name] for name in cli.list_commands(None))):\n"
        "    cli.main([*words, '--help'], 'skinjob', standalone_mode=False)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | import_path() | {"COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = re.sub(r"(?s)  Example:.*?\n\n", "", output).splitlines()  # examples are to be pasted
    assert len(re.findall("^Usage:", output, re.M)) == 1 + len(all_commands())
    assert max(map(len, lines)) <= min(columns, 100)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 100], ids=["fits a buffer", "larger than a buffer"])
def test_a_pipe_that_closes_is_no_error(num_seeds: int, tmp_path: Path, shell_path: str) -> None:
    """`skinjob ... | head -1` prints its line and no error."""
    draw_sweep(tmp_path / "runs" / "monday", seeds=range(num_seeds), epochs=1)
    for reader, num_lines in (("head -1", 1), ("true", 0)):
        for line in ("skinjob submit --help", "skinjob status"):
            call = f"{line} | {reader}; echo ${{PIPESTATUS[0]}} >&2"
            result = in_shell("bash", call, tmp_path, shell_path)
            assert len(result.stdout.splitlines()) == num_lines
            # Shells show a closed pipe as 141. It is 0 if all was written before the reader left.
            assert result.stderr.strip() in ("0", "141"), line


def test_output_to_a_full_disk_is_an_error(tmp_path: Path, shell_path: str) -> None:
    """`skinjob ... > FILE` on a full disk prints an error and a fix."""
    draw_sweep(tmp_path / "runs" / "monday", epochs=1)
    for line in ("skinjob --help", "skinjob status"):
        result = in_shell("bash", f"{line} > /dev/full", tmp_path, shell_path)
        assert result.returncode == 1
        assert result.stderr.splitlines() == [
            "error: output was truncated: No space left on device",
            "fix:   df -h",
        ]
