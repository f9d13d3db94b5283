"""`skinjob status` and `skinjob list` without SLURM: tables, terminals, JSON."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from commands import SKINJOB, recorded, refusal, skinjob
from sweep_maker import draw_sweep
from terminal import terminal

from skinjob.files import write_json
from skinjob.sweeps.layout import Run, Sweep, run_name
from skinjob.sweeps.records import RunState, utc_now

NO_SLURM = "/nonexistent"  # a PATH without SLURM's commands
FIRST, SECOND, THIRD, FOURTH = (run_name(size, 0.01, 0) for size in (32, 64, 128, 256))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep on SLURM with four runs: requeued and running, just started, waiting, done."""
    began, now = "2026-01-01T10:00:00Z", "2026-01-01T10:10:30Z"
    running = RunState(
        status="running",
        host="gpu-node-017",
        attempts=3,
        resumed_epoch=5,
        epoch=10,
        epoch_utc="2026-01-01T10:10:00Z",
        images_per_s=1234.5,
        started_utc=began,
        heartbeat_utc=now,
    )
    first = RunState(status="running", host="gpu-node-018", attempts=1, heartbeat_utc=now)
    return draw_sweep(
        tmp_path / "runs/sweep",
        finished={FIRST: 10, SECOND: 0, THIRD: 0, FOURTH: 20},
        states={FIRST: running, SECOND: first, THIRD: RunState(queued_utc=utc_now())},
    )


def test_json_has_everything_that_status_knows(sweep: Sweep, tmp_path: Path) -> None:
    """--json prints an object; the time left follows from the pace since the job's last start."""
    result = skinjob("status", "--json", cwd=tmp_path, PATH=NO_SLURM)
    assert result.returncode == 3
    printed = json.loads(result.stdout)
    runs = {run.pop("run"): run for run in printed.pop("runs")}
    assert printed == {"sweep": "sweep", "folder": str(sweep.folder), "slurm": "does not answer"}
    first = runs[FIRST]
    assert (first["status"], first["epoch"], first["epochs"]) == ("running", 10, 20)
    assert (first["node"], first["job"], first["requeues"]) == ("gpu-node-017", "12_0", 2)
    # 5 epochs in 600 s: 10 more take 1,200 s, and 30 s of them are over.
    assert (first["images_per_s"], first["left_s"]) == (1234.5, 1170)
    assert 0.5 < first["accuracy"] < 1
    assert runs[SECOND]["left_s"] is None, "not known before its first epoch"
    assert (runs[THIRD]["status"], runs[THIRD]["node"]) == ("waiting", None)
    assert set(first) == set(runs[FOURTH])


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (60, "run status epoch accuracy left"),
        (100, "run status epoch accuracy images/s left node job requeues"),
        (200, "run status epoch accuracy images/s left node job requeues"),
    ],
)
def test_a_table_fits_its_terminal(sweep: Sweep, tmp_path: Path, columns: int, names: str) -> None:
    """A narrow terminal shows fewer columns; no line is cut or broken."""
    with terminal(*SKINJOB, "status", cwd=tmp_path, columns=columns, PATH=NO_SLURM) as shown:
        screen = shown.show("exit 3")
        assert "\x1b[36mrunning" in shown.coloured(), "the word has a colour"
    lines = screen.splitlines()
    header = next(line for line in lines if line.startswith("run "))
    assert header.split() == names.split()
    at = lines.index(header)
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == [FIRST, SECOND, THIRD, FOURTH]
    assert all(len(line) <= columns for line in lines)
    assert "4 runs: 2 running, 1 waiting, 1 done" in lines


def test_no_color_removes_only_the_colours(sweep: Sweep, tmp_path: Path) -> None:
    """With NO_COLOR a status is still shown as a word."""
    with terminal(
        *SKINJOB, "status", cwd=tmp_path, columns=100, PATH=NO_SLURM, NO_COLOR="1"
    ) as plain:
        plain.show("exit 3")
        assert not re.search(r"\x1b\[3[0-7]m", plain.coloured())
        assert f"{FIRST}  running" in plain.screen()


@pytest.mark.slow
def test_a_watch_redraws_in_place(sweep: Sweep, tmp_path: Path) -> None:
    """A watch never scrolls; at its end the cursor is visible again."""
    with terminal(
        *SKINJOB, "status", "--watch", cwd=tmp_path, columns=60, lines=12, PATH=NO_SLURM
    ) as shown:
        shown.show(f"{FIRST}  running")
        assert not shown.ask("cursor_flag"), "the cursor is hidden while the screen is redrawn"
        Run(sweep.folder / FIRST).update_state(epoch=11)
        screen = shown.show(" 11/20 ")
        assert screen.count(FIRST) == 1
        for run in sweep.runs():
            run.update_state(status="done", epoch=20)
        screen = shown.show("exit 0")
        assert screen.count(FIRST) == 1
        assert "4 runs: 4 done" in screen
        assert shown.ask("cursor_flag")
        assert shown.ask("history_size") == 0


def test_failures_are_counted_below_a_narrow_table(sweep: Sweep, tmp_path: Path) -> None:
    """If the failures do not fit beside the runs, a line below counts the runs of each."""
    for name in (FIRST, THIRD):
        Run(sweep.folder / name).update_state(
            status="failed", failure="time limit", reason="too long"
        )
    with terminal(*SKINJOB, "status", cwd=tmp_path, columns=60, PATH=NO_SLURM) as shown:
        assert "\n2 failed: time limit\n" in shown.show("exit 3")
    output = skinjob("status", cwd=tmp_path, PATH=NO_SLURM).stdout
    assert len(re.findall(r"^bs\S+ +failed .*  time limit$", output, re.M)) == 2
    assert "2 failed: time limit" not in output


def test_ctrl_c_leaves_a_watch(sweep: Sweep, tmp_path: Path) -> None:
    """The cursor is visible again, and the exit code is that of an interrupted command."""
    with terminal(*SKINJOB, "status", "--watch", cwd=tmp_path, columns=100, PATH=NO_SLURM) as shown:
        shown.show(f"{FIRST}  running")
        shown.press("C-c")
        assert "Traceback" not in shown.show("exit 130")
        assert shown.ask("cursor_flag")


def test_a_damaged_file_hides_no_other_run_or_sweep(sweep: Sweep, tmp_path: Path) -> None:
    """A run with a damaged state has a row that says so; a damaged sweep is skipped."""
    Run(sweep.folder / SECOND).state_file.write_text("x")
    broken = tmp_path / "runs/broken/sweep.json"
    broken.parent.mkdir()
    broken.write_text("{")
    result = skinjob("status", "--json", cwd=tmp_path, PATH=NO_SLURM)
    runs = {run["run"]: run for run in json.loads(result.stdout)["runs"]}
    assert (runs[SECOND]["status"], runs[SECOND]["note"]) == ("lost", "its state cannot be read")
    assert runs[SECOND]["fix"].startswith("rm ")
    assert runs[FIRST]["status"] == "running"
    assert f"left alone: {broken.parent.relative_to(tmp_path)}: " in (
        skinjob("clean", cwd=tmp_path, PATH=NO_SLURM).stdout
    )


def test_status_explains_a_run_that_an_admin_cancelled(sweep: Sweep, tmp_path: Path) -> None:
    """A run that the user cancelled has only its row in the table."""
    for name, reason in ((FIRST, None), (SECOND, "job 12_1 was cancelled by root")):
        Run(sweep.folder / name).update_state(status="cancelled", reason=reason)
    output = skinjob("status", cwd=tmp_path, PATH=NO_SLURM).stdout
    assert re.search(rf"^{FIRST} +cancelled ", output, re.M)
    assert f"{FIRST}: " not in output
    assert f"{SECOND}: cancelled\n  job 12_1 was cancelled by root\n" in output


def test_a_watch_of_many_runs_shows_those_that_are_running(tmp_path: Path) -> None:
    """If the sweep is longer than the screen, the other runs are counted."""
    last = run_name(32, 0.01, 99)
    draw_sweep(tmp_path / "runs/sweep", batch_sizes=(32,), seeds=range(100), finished={last: 7})
    with terminal(
        *SKINJOB, "status", "--watch", cwd=tmp_path, columns=60, lines=12, PATH=NO_SLURM
    ) as shown:
        lines = shown.show("and 96 more: 96 done").splitlines()
    assert lines[1] == "100 runs: 1 running, 99 done"
    assert lines[6].split()[:3] == [last, "running", "7/20"]


def test_a_pipe_gets_every_column_and_may_close_early(sweep: Sweep, tmp_path: Path) -> None:
    """`skinjob status | head` prints nothing on stderr."""
    table = skinjob("status", cwd=tmp_path, PATH=NO_SLURM).stdout.split("\n\n")[1].splitlines()
    names = "run status epoch accuracy images/s left node job requeues reason"
    assert table[0].split() == names.split()
    assert {len(line.split()) for line in table} == {len(names.split())}
    with subprocess.Popen(
        [*SKINJOB, "status"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as left:
        assert left.stdout
        assert left.stderr
        left.stdout.close()
        assert left.stderr.read() == b""


def test_list_shows_each_sweep_with_its_recipe_and_progress(sweep: Sweep, tmp_path: Path) -> None:
    """The newest sweep is last, and a damaged sweep hides no other."""
    newer = draw_sweep(tmp_path / "runs/newer", batch_sizes=(8, 16), seeds=(0, 1), lrs=(0.1, 0.2))
    info = recorded(newer) | {"created_utc": "2026-05-05T12:30:00Z"}
    write_json(newer.sweep_file, info)
    damaged = tmp_path / "runs/damaged/sweep.json"
    damaged.parent.mkdir()
    damaged.write_text('{"runs": 7}')
    result = skinjob("list", cwd=tmp_path, PATH=NO_SLURM)
    assert result.returncode == 0, result.stderr
    table, below = result.stdout.split("\n\n")
    first, second, last = table.splitlines()[1:]
    assert first.split()[0] == "damaged"
    assert "does not read" in first
    assert re.match(r"sweep +2025-03-01 08:59 .* 2 running, 1 waiting, 1 done +8\d.\d%$", second)
    made = "2026-05-05 12:30  head, batch sizes 8,16, 2 learning rates, 2 seeds, 20 epochs  8 done"
    assert last.startswith(f"newer    {made}")
    assert "runs/damaged/sweep.json: runs must be array, not int" in below


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_the_list_fits_its_terminal(sweep: Sweep, tmp_path: Path, columns: int) -> None:
    """A narrow terminal shows no recipe, then no date, and then has the counts on a second line."""
    sweep.folder.rename(sweep.folder.with_name("a-sweep-with-a-name-of-some-length"))
    with terminal(*SKINJOB, "list", cwd=tmp_path, columns=columns, PATH=NO_SLURM) as shown:
        lines = shown.show("exit 0").splitlines()
    assert len(lines) == 3, "header or name, counts, exit code"
    assert all(len(line) <= columns for line in lines)
    assert ("batch sizes" in lines[1]) == (columns == 200)
    assert "2 running, 1 waiting, 1 done" in lines[1]


def test_list_without_a_sweep_says_how_to_make_one(tmp_path: Path) -> None:
    """Without any sweep `list` is no error; a sweep that does not exist is an error of `status`."""
    result = skinjob("list", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (
        0,
        "no sweep in runs/ yet; make one: skinjob submit\n",
    )
    assert "nowhere: no sweep" in refusal(skinjob("status", "nowhere", cwd=tmp_path))
    assert "--json prints once" in refusal(skinjob("status", "--json", "--watch", cwd=tmp_path), 2)


def test_runs_with_updates_count_them(tmp_path: Path) -> None:
    """Status, its JSON and the list of sweeps speak of updates, whatever the batch size."""
    draw_sweep(tmp_path / "runs/sweep", updates=140, finished={FIRST: 1})
    lines = skinjob("status", cwd=tmp_path, PATH=NO_SLURM).stdout.splitlines()
    header = next(line.split() for line in lines if line.startswith("run "))
    assert "epoch" not in header
    column = header.index("update")
    rows = [line.split() for line in lines if line.startswith("bs")]
    assert [row[column] for row in rows] == ["83/140", *3 * ["140/140"]]
    result = skinjob("status", "--json", cwd=tmp_path, PATH=NO_SLURM)
    first, second, *_ = json.loads(result.stdout)["runs"]
    assert (first["updates"], first["epoch"], first["epochs"]) == (83, 1, 2)
    assert (second["updates"], second["epoch"], second["epochs"]) == (140, 4, 4)
    assert "140 updates" in skinjob("list", cwd=tmp_path, PATH=NO_SLURM).stdout
