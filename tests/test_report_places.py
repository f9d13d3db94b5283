"""Where a report goes, and what of a sweep it goes on without: other users' files, bad places."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest
from commands import as_nobody, refusal, skinjob
from sweep_maker import make_sweep
from terminal import SKINJOB

from skinjob.report.build import build_report
from skinjob.runs import Run, Sweep, run_name

NAMES = [run_name(size, 0.01, 0) for size in (32, 64, 128, 256)]
FIRST = NAMES[0]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files need root")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path / "runs/a b", batch_sizes=(32, 64), epochs=2)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def fix_of(result: subprocess.CompletedProcess[str]) -> str:
    refusal(result)
    return result.stderr.splitlines()[1].removeprefix("fix:   ")


def pasted(fix: str, home: Path) -> list[str]:
    """Returns the words that a shell makes of a fix that a person pastes."""
    _, *words = shlex.split(fix)
    return [*SKINJOB, *(word.replace("~", str(home)) for word in words)]


# --- runs that cannot be read -----------------------------------------------------------------


def damage_row(run: Run) -> str:
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join([lines[0], *lines[2:]]))
    return f"{run.metrics_file}, line 2: epoch 2 where epoch 1 is due"


def put_folder(run: Run) -> str:
    run.metrics_file.unlink()
    run.metrics_file.mkdir()
    return f"{run.metrics_file}: it is not a file"


def put_pipe(run: Run) -> str:
    run.metrics_file.unlink()
    os.mkfifo(run.metrics_file)
    return f"{run.metrics_file}: it is not a file"


def link_to_itself(run: Run) -> str:
    run.metrics_file.unlink()
    run.metrics_file.symlink_to(run.metrics_file.name)
    return f"{run.metrics_file}: Too many levels of symbolic links"


def damage_state(run: Run) -> str:
    run.state_file.write_text('{\n"epoch": x')
    return f"{run.state_file}: Expecting value: line 2"


def damage_config(run: Run) -> str:
    run.config_file.write_text("[]")
    return f"{run.config_file} holds no object"


DAMAGES = (damage_row, put_folder, put_pipe, link_to_itself, damage_state, damage_config)


def test_a_run_that_cannot_be_read_is_missing_and_stops_no_other(tmp_path: Path) -> None:
    """It is named with file and reason, in the terminal and on the page, and is in no number."""
    sizes = (32, 64, 128, 256, 512, 1024, 2048)
    sweep = make_sweep(tmp_path.resolve() / "s", batch_sizes=sizes, epochs=2)
    *bad, good = sweep.runs()
    reasons = [damage(run) for damage, run in zip(DAMAGES, bad, strict=True)]
    result = skinjob("report", "s", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("missing: ")]
    page = (sweep.report_folder / "index.html").read_text()
    for line, run, reason in zip(lines, bad, reasons, strict=True):
        assert line.startswith(f"missing: {run.name}: not counted: ")
        assert reason in line
        assert escape(reason) in page
    for name in ("metrics.csv", "summary.csv"):
        rows = list(csv.DictReader((sweep.report_folder / name).read_text().splitlines()))
        assert {row["batch_size"] for row in rows} == {"2048"}
    good.metrics_file.write_text("x\n")
    refused = refusal(skinjob("report", "s", cwd=tmp_path))
    assert all(reason in refused for reason in reasons[:5])
    assert refused.endswith("; and 2 more)")


def test_runs_that_cannot_be_read_are_all_named_first(tmp_path: Path) -> None:
    """However many runs are missing, none that is damaged is only counted."""
    names = [run_name(32, 0.01, seed) for seed in range(60)]
    sweep = make_sweep(
        tmp_path / "s", batch_sizes=[32], seeds=range(60), epochs=1,
        finished=dict.fromkeys(names[1:30], 0),
    )  # fmt: skip
    for name in names[35:]:
        Run(sweep.folder / name).metrics_file.write_text("x\n")
    missing = build_report([sweep], tmp_path / "out").missing
    assert [line.split(":")[0] for line in missing[:25]] == names[35:]
    assert missing[25].startswith(f"{names[1]}: running")
    assert missing[-1] == "and 9 more runs: 9 running"


@needs_root
def test_runs_that_may_not_be_read_are_missing(place: Path) -> None:
    """A file, or a whole run, that the user has no rights to is one line of the report."""
    sweep = make_sweep(place / "sweep", epochs=1)
    runs = sweep.runs()
    for path in (runs[0].metrics_file, runs[1].config_file, runs[2].folder):
        path.chmod(0)
    (place / "home").mkdir()
    os.chown(place / "home", 65534, 65534)
    words = (*SKINJOB, "report", sweep.folder, "--out", "out")
    result = as_nobody(*words, cwd=place / "home")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("missing: ")]
    assert [line.split(": ")[1] for line in lines] == NAMES[:3]
    assert all("Permission denied" in line for line in lines)
    runs[3].state_file.chmod(0)
    assert refusal(as_nobody(*words, cwd=place / "home")).count("Permission denied") == 4
