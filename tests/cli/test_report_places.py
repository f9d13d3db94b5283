"""Reports with runs that cannot be read, on other users' sweeps, and to folders that are bad."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pytest
from commands import SKINJOB, as_nobody, import_path, refusal, skinjob
from sweep_maker import draw_sweep

from skinjob.errors import RunError
from skinjob.report.build import build_report
from skinjob.sweeps.layout import Run, Sweep, run_name

pytestmark = pytest.mark.slow  # most tests draw a whole report, as another user

NAMES = [run_name(size, 0.01, 0) for size in (32, 64, 128, 256)]
FIRST = NAMES[0]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of other users need root")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return draw_sweep(tmp_path / "runs/a b", batch_sizes=(32, 64), epochs=2)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can read; pytest's own folders are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def fix_of(result: subprocess.CompletedProcess[str]) -> str:
    refusal(result)
    return result.stderr.splitlines()[1].removeprefix("fix:   ")


def pasted(fix: str, home: Path) -> list[str]:
    """Returns the words of a fix as a shell reads them."""
    _, *words = shlex.split(fix)
    return [*SKINJOB, *(word.replace("~", str(home)) for word in words)]


# --- runs that cannot be read -----------------------------------------------------------------


def damage_row(run: Run) -> str:
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join([lines[0], *lines[2:]]))
    return f"{run.metrics_file}, line 2: epoch 2, but epoch 1 is next"


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


def test_a_run_that_cannot_be_read_is_listed_as_missing(tmp_path: Path) -> None:
    """Terminal and page show its file and the reason; the numbers are those of the other runs."""
    sizes = (32, 64, 128, 256, 512, 1024, 2048)
    sweep = draw_sweep(tmp_path.resolve() / "s", batch_sizes=sizes, epochs=2)
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
    assert refused.endswith(" and 2 more)")


def test_runs_that_cannot_be_read_come_first_in_the_list(tmp_path: Path) -> None:
    """Even if very many runs are missing, each damaged run is listed by name."""
    names = [run_name(32, 0.01, seed) for seed in range(60)]
    sweep = draw_sweep(
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
def test_runs_without_read_permission_are_missing(place: Path) -> None:
    """A file or folder that the user may not read gives a line in the report."""
    sweep = draw_sweep(place / "sweep", epochs=1)
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


# --- other users' sweeps ----------------------------------------------------------------------


@needs_root
def test_the_fix_reports_another_users_sweep_to_the_home_folder(place: Path) -> None:
    """Nothing is written into the other user's sweep; the fix can be pasted."""
    sweep = draw_sweep(place / "it's $HOME", batch_sizes=(32,), epochs=1)
    sweep.folder.chmod(0o777)
    home = place / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    refused = as_nobody(*SKINJOB, "report", sweep.folder, cwd=home)
    assert refusal(refused) == f"{sweep.folder} belongs to root"
    assert not sweep.report_folder.exists()
    done = as_nobody(*pasted(fix_of(refused), home), cwd=sweep.folder, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert (home / f"report-{sweep.name}/index.html").exists()
    assert not sweep.report_folder.exists()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the user with files that have the names of a report's files."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("metrics.csv", "summary.csv", "index.html"):
        (folder / name).write_text("mine")
    return folder


def listing(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("num_sweeps", [1, 2])
def test_a_report_follows_no_link_except_with_out(
    tmp_path: Path, mine: Path, num_sweeps: int
) -> None:
    """A report replaces no file through a link in or beside a sweep, unless --out names it."""
    runs = tmp_path / "runs"
    sweeps = [draw_sweep(runs / f"s{n}", batch_sizes=(32,), epochs=1) for n in range(num_sweeps)]
    report = sweeps[0].report_folder if num_sweeps == 1 else runs / "report-s0-s1"
    report.symlink_to(mine)
    before = listing(mine)
    refused = skinjob("report", *(sweep.folder for sweep in sweeps), cwd=tmp_path)
    assert refusal(refused) == f"{report} is a link to {mine}"
    assert listing(mine) == before
    line = f'skinjob() {{ {sys.executable} -m skinjob "$@"; }}; {fix_of(refused)}'
    env = os.environ | import_path() | {"HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"report-{'-'.join(sweep.name for sweep in sweeps)}/index.html").exists()
    assert listing(mine) == before
    skinjob("report", *(sweep.folder for sweep in sweeps), "--out", report, cwd=tmp_path)
    assert (mine / "comparison.png").exists()


@needs_root
@pytest.mark.parametrize("where", [".", "report"])
def test_a_report_is_written_only_into_the_users_own_folders(sweep: Sweep, where: str) -> None:
    """If another user owns the sweep or its report/, even root gets an error."""
    sweep.report_folder.mkdir()
    os.chown(sweep.folder / where, 65534, 65534)
    with pytest.raises(RunError, match=r"(a b|report) belongs to nobody"):
        build_report([sweep])
    assert not list(sweep.report_folder.iterdir())


# --- folders that cannot be written -------------------------------------------------------------


@needs_root
def test_a_folder_that_cannot_be_written_is_an_error(place: Path) -> None:
    """The error has the path and the reason; the fix writes to a folder that works."""
    sweep = draw_sweep(place / "sweep", batch_sizes=(32,), epochs=1)
    home = place / "home"
    (home / "closed").mkdir(parents=True)
    (home / "file").write_text("")
    (home / "taken/metrics.csv").mkdir(parents=True)
    for path in (home, *home.rglob("*"), *sweep.folder.rglob("*"), sweep.folder):
        os.chown(path, 65534, 65534)
    (home / "closed").chmod(0o555)
    sweep.folder.chmod(0o555)
    cases = {
        (): f"{sweep.report_folder}: Permission denied",
        ("--out", "closed"): "closed: Permission denied",
        ("--out", "closed/x/y"): "closed/x: Permission denied",
        ("--out", "file"): "file: it is not a folder",
        ("--out", "file/x"): "file/x: Not a directory",
        ("--out", "taken"): "taken/metrics.csv: Is a directory",
    }
    for words, reason in cases.items():
        refused = as_nobody(*SKINJOB, "report", sweep.folder, *words, cwd=home)
        assert refusal(refused) == reason
        assert fix_of(refused) == f"skinjob report {sweep.folder} --out ~/report-sweep"
    done = as_nobody(*pasted(fix_of(refused), home), cwd=home)
    assert done.returncode == 0, done.stderr


@needs_root
def test_the_fix_reports_a_sweep_on_a_read_only_file_system(sweep: Sweep) -> None:
    """The fix names another folder, whether the sweep has a report/ or not."""
    folder = sweep.folder.resolve()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        for _ in range(2):
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            refused = skinjob("report", folder, cwd=folder.parent)
            assert refusal(refused) == f"{sweep.report_folder}: Read-only file system"
            assert "--out ~/" in fix_of(refused)
            subprocess.run(["mount", "-o", "remount,bind,rw", folder], check=True)
            sweep.report_folder.mkdir(exist_ok=True)
    finally:
        subprocess.run(["umount", folder], check=True)
