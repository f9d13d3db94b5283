"""Texts of strangers in a shared folder cannot control the terminal of a user who looks at it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import SKINJOB, recorded, skinjob
from sweep_maker import draw_sweep, metric_rows, write_rows
from terminal import on_a_pty

from skinjob.console import with_typed_options
from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep, run_name
from skinjob.sweeps.records import RunState

NO_SLURM = "/nonexistent"  # a PATH without SLURM's commands
EVIL = "\x1b]0;title\x07\x1b[2J\x1b[1A\r\x9b2K\x85\u202e\u2028\u200b"
HOSTILE = f"a{EVIL}\nerror: FORGED"
PLAIN, ODD = run_name(32, 0.01, 0), f"b{HOSTILE}"

RICH = r"\x1b\[[0-9;]*m"
LIVE = rf"{RICH}|\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K|\r"
"""What rich itself sends to a terminal: colours, and more codes where it redraws the screen."""

COMMANDS = {
    "status": ("status",),
    "watch": ("status", "--watch"),
    "list": ("list",),
    "report": ("report",),
    "logs": ("logs",),
    "retry": ("retry",),
    "retry one": ("retry",),
    "cancel": ("cancel",),
    "clean": ("clean",),
    "json": ("status", "--json"),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep of a stranger, in which every text is hostile."""
    failed = RunState(
        status="failed",
        job_id=HOSTILE,
        holder=HOSTILE,
        host=HOSTILE,
        epoch=3,
        device=HOSTILE,
        precision=HOSTILE,
        heartbeat_utc="2025-03-01\x1b09:10:00Z",
        finished_utc="2025-03-01\n09:10:00Z",
        failure="killed",
        reason=HOSTILE,
        fix=HOSTILE,
    )
    sweep = draw_sweep(
        tmp_path / "runs" / HOSTILE, batch_sizes=(32,), finished={PLAIN: 3}, states={PLAIN: failed}
    )
    run = sweep.runs()[0]
    write_rows(run, [row | {"sweep": "s"} for row in metric_rows(run, 32, 0, 3)])
    run.log_file.write_text(f"\ttabs{EVIL}stay\n")
    run.config_file.write_text(json.dumps(run.config().__dict__ | {"data": HOSTILE}))
    odd = Run(sweep.folder / ODD)
    odd.folder.mkdir()
    odd.config_file.write_text(run.config_file.read_text())
    write_json(odd.state_file, failed.__dict__ | {"status": "done", "epoch": 20})
    info = recorded(sweep)
    info["recipe"] |= {"train": HOSTILE, "schedule": HOSTILE}
    info["images"] |= {"root": HOSTILE, "classes": [HOSTILE], "counts": {"test": {HOSTILE: 5}}}
    info["weights"] |= {"source": HOSTILE, "architecture": HOSTILE, "path": HOSTILE}
    write_json(
        sweep.sweep_file,
        info
        | {
            "created_utc": HOSTILE,
            "batch_sizes": [HOSTILE],
            "runs": [PLAIN, ODD],
            "jobs": {PLAIN: "12_0", ODD: HOSTILE},
            "cluster": {"cluster": "slurm", "partition": HOSTILE, "time_min": 5, "mem_gb": 5},
            "versions": {HOSTILE: HOSTILE},
        },
    )
    sweep.submission_folder.mkdir(mode=0o700)
    (sweep.submission_folder / "12_0_log.out").write_text(f"{EVIL}\n")
    (sweep.submission_folder / f"{EVIL}.sh").write_text("")
    broken = tmp_path / "runs" / f"broken{HOSTILE}" / "sweep.json"
    broken.parent.mkdir()
    broken.write_text(json.dumps({"created_utc": [HOSTILE]}))
    return sweep


def words_of(command: str, sweep: Sweep) -> tuple[str | Path, ...]:
    words = COMMANDS[command]
    if command == "list":
        return words
    if command == "retry one":
        return (*words, sweep.folder, ODD)
    return (*words, sweep.folder / PLAIN if command == "logs" else sweep.folder)


def is_harmless(output: str, *, log: bool = False) -> bool:
    """Returns whether *output* has no control character except line breaks, and tabs in a log."""
    kept = "\n\t" if log else "\n"
    is_text = all(c.isprintable() or c in kept for c in output)
    return is_text and not re.search(r"^\W*(error|fix): *FORGED", output, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_texts_are_escaped_in_a_pipe(
    sweep: Sweep, command: str, tmp_path: Path
) -> None:
    """A pipe, which may lead to a pager, gets control characters as readable codes."""
    result = skinjob(*words_of(command, sweep), cwd=tmp_path, PATH=NO_SLURM)
    output = result.stdout + result.stderr
    assert "Traceback" not in output
    assert "u202e" in output, output
    assert is_harmless(output, log=command == "logs"), repr(output)
    if command == "logs":
        assert "\ttabs" in result.stdout


@pytest.mark.parametrize("command", ["status", "watch", "list", "report", "logs", "retry"])
@pytest.mark.parametrize("columns", [40, 200])
def test_a_strangers_texts_are_escaped_on_a_terminal(
    sweep: Sweep, command: str, columns: int, tmp_path: Path
) -> None:
    """A terminal gets only text and the colours of skinjob."""
    output = on_a_pty(
        *SKINJOB, *words_of(command, sweep), cwd=tmp_path, columns=columns, PATH=NO_SLURM
    )
    assert "Traceback" not in output
    output = re.sub(LIVE if command == "watch" else RICH, "", output.replace("\r\n", "\n"))
    assert is_harmless(output, log=command == "logs"), repr(output)


EVERY_FUNCTION = """
import sys
from skinjob import console
evil = sys.argv[1]
console.say(evil, colour="red")
console.print_table(("a", "b"), [(evil, evil)])
console.print_sentence(evil)
with console.progress(evil, 2) as draw:
    draw(1)
line = console.StatusLine()
line.show(evil, evil)
line.clear()
console.ask(evil)
"""


def test_every_function_that_prints_escapes_its_text(tmp_path: Path) -> None:
    """Progress bars, questions and status lines may also contain names and messages of SLURM."""
    output = on_a_pty(
        sys.executable, "-c", EVERY_FUNCTION, HOSTILE, cwd=tmp_path, columns=300, typed="y\n"
    )
    assert "Traceback" not in output
    output = re.sub(rf"{LIVE}|\x1b\[K", "", output.replace("\r\n", "\n"))
    assert output.count(r"\u202e") >= 6
    assert is_harmless(output), repr(output)


def test_help_and_completion_escape_texts(sweep: Sweep, tmp_path: Path) -> None:
    """Help shows values of a job file, and Tab shows names of sweeps; both may be a stranger's."""
    (tmp_path / "job.toml").write_text(f"[train]\ndata = {json.dumps(HOSTILE)}\n")
    shown = skinjob("submit", "--job", "job.toml", "--help", cwd=tmp_path)
    assert r"\u202e" in "".join(shown.stdout.split()), "it may be broken over two lines"
    assert is_harmless(shown.stdout), repr(shown.stdout)
    draw_sweep(tmp_path / "runs/plain", batch_sizes=(32,), epochs=1)
    words = {"COMP_WORDS": "skinjob status ", "COMP_CWORD": "2"}
    offered = skinjob(cwd=tmp_path, _SKINJOB_COMPLETE="bash_complete", **words).stdout
    assert "plain" in offered
    assert is_harmless(offered), repr(offered)


@pytest.mark.parametrize(
    ("typed", "fix", "shown"),
    [
        ("submit --data 'a b' --epochs 0", "--epochs 20", "--data 'a b' --epochs 20"),
        ("submit --epochs=0 --wait", "--epochs 20   # why", "--wait --epochs 20   # why"),
        ("submit --name x --name y", "--name z", "--name z"),
        ("submit", "--epochs 20", "--epochs 20"),
        ("status --epochs 0", "--epochs 20", "--epochs 20"),
    ],
)
def test_a_fix_keeps_the_other_options_that_were_typed(
    typed: str, fix: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix can be pasted: it replaces only the options that it changes."""
    monkeypatch.setattr("sys.argv", ["skinjob", *shlex.split(typed)])
    assert with_typed_options(f"skinjob submit {fix}") == f"skinjob submit {shown}"
