"""`skinjob retry` without a queue: which runs it queues, with which options, and what it prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from commands import recorded, refusal, skinjob
from trees import make_sweep

from skinjob.sweeps.layout import Sweep

LONG_AGO = "2020-01-01T00:00:00Z"
RUNNING = {"status": "running", "host": "elsewhere", "started_utc": LONG_AGO}


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """A local sweep with a run of each status: done, failed, lost, cancelled and running."""
    data, weights = project / "skin_cancer", project / "weights/resnet18.safetensors"
    made = make_sweep(data, weights, project / "runs", batch_sizes=(1, 2, 3, 4, 5))
    done, failed, lost, cancelled, running = made.runs()
    done.update_state(status="done", epoch=2)
    failed.update_state(status="failed", failure="killed", reason="it was killed", epoch=1)
    lost.update_state(status="lost", reason="nobody says why")
    cancelled.update_state(status="cancelled")
    running.update_state(**RUNNING)
    return made


def dry_runs(output: str) -> list[str]:
    """Returns the runs that a dry run lists."""
    return output.split("# runs\n")[1].split("\n\n")[0].splitlines()


def test_only_failed_and_lost_runs_are_queued(project: Path, sweep: Sweep) -> None:
    """Other runs are listed as left alone; --cancelled, or its name, adds a cancelled run."""
    done, failed, lost, cancelled, running = (run.name for run in sweep.runs())
    before = [run.state() for run in sweep.runs()]
    result = skinjob("retry", "sweep", "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    assert dry_runs(result.stdout) == [failed, lost]
    assert f"left alone, done: {done}\n" in result.stdout
    assert f"left alone, running: {running}\n" in result.stdout
    assert f"left alone, cancelled; add --cancelled to queue them: {cancelled}\n" in result.stdout
    assert [run.state() for run in sweep.runs()] == before
    named = skinjob("retry", "sweep", cancelled, done, "--dry-run", cwd=project)
    assert dry_runs(named.stdout) == [cancelled]
    assert f"left alone, done: {done}\n" in named.stdout
    every = skinjob("retry", "sweep", "--cancelled", "--dry-run", cwd=project)
    assert dry_runs(every.stdout) == [failed, lost, cancelled]


@pytest.mark.parametrize("word", ["runs/other/{}", "other/{}", "/nowhere/{}", "{}/.", "{}/../x"])
def test_a_path_to_a_run_of_another_sweep_is_refused(
    project: Path, sweep: Sweep, word: str
) -> None:
    """Runs of different sweeps have the same names, so a path must lead to a run of this sweep."""
    name = sweep.runs()[1].name
    shutil.copytree(sweep.folder, sweep.folder.with_name("other"))
    message = refusal(skinjob("retry", "sweep", word.format(name), "--dry-run", cwd=project))
    assert message == f"{word.format(name)}: no run of {sweep.folder.relative_to(project)}"
    for own in (name, f"sweep/{name}", f"runs/sweep/{name}", sweep.folder / name):
        assert skinjob("retry", "sweep", own, "--dry-run", cwd=project).returncode == 0


def test_a_dot_names_the_current_folder_as_a_sweep(project: Path, sweep: Sweep) -> None:
    """`.` and `..` work as SWEEP and as RUN."""
    inside = sweep.runs()[1].folder
    for word, here in ((".", sweep.folder), ("..", inside)):
        taken = dry_runs(skinjob("retry", word, "--dry-run", cwd=here).stdout)
        assert taken == dry_runs(skinjob("retry", "sweep", "--dry-run", cwd=project).stdout)
        skinjob("cancel", word, cwd=here)
        assert not list(sweep.folder.glob(".submit-*.lock")), "the lock belongs beside the sweeps"
    (inside / "train.log").write_text("the last line\n")
    assert "the last line" in skinjob("logs", ".", cwd=inside).stdout


def test_nothing_to_retry_is_no_error(project: Path, sweep: Sweep) -> None:
    """A script can call `retry` after every sweep."""
    for run in sweep.runs():
        run.update_state(status="done", epoch=2)
    result = skinjob("retry", sweep.folder, cwd=project)
    assert result.returncode == 0, result.stderr
    assert "nothing in " in result.stdout
    assert {run.state().attempts for run in sweep.runs()} == {0}


def test_a_retry_keeps_the_options_of_the_submit(project: Path, sweep: Sweep) -> None:
    """Options of this command change them; job files, variables and new defaults do not."""
    info = recorded(sweep)
    info["cluster"] |= {"time_min": 77, "cpus": 3, "setup": ["module load cuda"]}
    del info["cluster"]["array_parallelism"]  # as in an older version
    sweep.sweep_file.write_text(json.dumps(info))
    (project / "jobs").mkdir()
    (project / "jobs/default.toml").write_text("[cluster]\ntime_min = 5\ncpus = 5\n")
    result = skinjob(
        "retry", "sweep", "--mem", "3", "--dry-run", cwd=project,
        SKINJOB_SUBMIT_TIME="6", SKINJOB_RETRY_CPUS="6", SKINJOB_SUBMIT_CPUS="6",
    )  # fmt: skip
    for words in (
        "mem_gb = 3.0",
        "time_min = 77",
        "cpus = 3",
        "setup = ('module load cuda',)",
        "array_parallelism = 256",
        "epochs = 2",
        "device   cpu (as before)",
    ):
        assert words in result.stdout


def test_a_fix_works_from_any_folder(
    project: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command can be pasted anywhere, also if the sweep's path has spaces and quotes."""
    odd = sweep.folder.rename(project / "runs/it's my sweep")
    monkeypatch.chdir(project)
    command = Sweep(Path("runs/it's my sweep")).retry_command(twice="time_min")
    words = shlex.split(command)
    assert words == ["skinjob", "retry", str(odd), "--time", "240"]
    result = skinjob(*words[1:], "--dry-run", cwd=Path("/"))
    assert result.returncode == 0, result.stderr
    assert "time_min = 240" in result.stdout


def test_there_is_a_fix_even_if_the_sweep_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose sweep and working folder are gone still gives a command."""
    here = tmp_path / "gone"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    assert Sweep(Path("runs/s")).retry_command(twice="mem_gb") == "skinjob retry runs/s"


def test_a_retry_with_changed_images_is_refused(project: Path, sweep: Sweep) -> None:
    """A sweep is not continued on other images."""
    (project / "skin_cancer/train/benign/0.jpg").unlink()
    result = skinjob("retry", "sweep", "--dry-run", cwd=project)
    assert "exists, with another recipe, images or weights" in refusal(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosweep"], "nosweep: no sweep, neither here nor in runs/"),
        (["sweep", "bs9"], "bs9: no run of runs/sweep"),
        (["sweep", "--time", "1"], "time is 1, and must be 5 to 525600"),
    ],
)
def test_a_wrong_word_after_retry_is_an_error(
    project: Path, sweep: Sweep, arguments: list[str], words: str
) -> None:
    """The error repeats the wrong value and has a fix."""
    assert words in refusal(skinjob("retry", *arguments, cwd=project))


def test_the_help_of_retry_shows_no_defaults_of_submit(project: Path) -> None:
    """An option that is not given is as the sweep has it, so submit's defaults would be wrong."""
    text = skinjob("retry", "--help", cwd=project).stdout
    assert "--time" in text
    assert re.findall(r"\[default: ([^]]*)\]", text) == ["runs"]


def test_a_running_run_is_left_alone_even_by_name(project: Path, sweep: Sweep) -> None:
    """A user who names a running run by mistake disturbs nothing."""
    running = sweep.runs()[-1]
    before = running.state()
    result = skinjob("retry", "sweep", running.name, cwd=project)
    assert result.returncode == 0, result.stderr
    assert f"left alone, running: {running.name}\n" in result.stdout
    assert running.state() == before
