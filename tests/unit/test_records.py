"""Files that an older or a newer skinjob wrote, or nobody in their right mind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_maker import draw_sweep

from skinjob.errors import RunError
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import FORMAT, UPGRADE, Failure, RunState, Status

FILES: dict[str, tuple[Callable[[Sweep], Path], Callable[[Sweep], Any]]] = {
    "sweep.json": (lambda sweep: sweep.sweep_file, lambda sweep: sweep.info()),
    "config.json": (lambda sweep: first(sweep).config_file, lambda sweep: first(sweep).config()),
    "state.json": (lambda sweep: first(sweep).state_file, lambda sweep: first(sweep).state()),
}


def first(sweep: Sweep) -> Run:
    return sweep.runs()[0]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return draw_sweep(tmp_path / "runs/s", batch_sizes=(32,), epochs=2)


@pytest.mark.parametrize("name", FILES)
def test_a_newer_format_is_refused_in_words(sweep: Sweep, name: str) -> None:
    """What an older skinjob cannot understand it does not guess: it says how to go on."""
    file, read = FILES[name]
    path = file(sweep)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"format": FORMAT + 1}))
    with pytest.raises(RunError) as error:
        read(sweep)
    made = f"{path} was made by a newer skinjob (format {FORMAT + 1}; this one reads up to {FORMAT}"
    assert error.value.message == f"{made})"
    assert error.value.fix == UPGRADE


@pytest.mark.parametrize("name", FILES)
def test_keys_that_are_not_known_are_passed_over(sweep: Sweep, name: str) -> None:
    """A newer skinjob that adds a key leaves its files readable."""
    file, read = FILES[name]
    path, before = file(sweep), read(sweep)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"newer": [1]}))
    assert read(sweep) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, RunState()),
        ({"state": "queued"}, RunState()),
        ({"state": "queued", "fault": "preempted"}, RunState(failure=Failure.PREEMPTED)),
        ({"state": "done"}, RunState(Status.DONE)),
        (
            {"state": "failed", "fault": "killed", "error": "why", "remedy": "how"},
            RunState(Status.FAILED, failure=Failure.KILLED, reason="why", fix="how"),
        ),
        (
            {"state": "failed", "fault": "cancelled", "error": "cancelled by you", "fix": "how"},
            RunState(Status.CANCELLED, fix="how"),
        ),
        (
            {"state": "failed", "fault": "cancelled", "error": "job 1 was cancelled by root"},
            RunState(Status.CANCELLED, reason="job 1 was cancelled by root"),
        ),
        ({"state": "failed", "fault": "gone", "error": "?"}, RunState(Status.LOST, reason="?")),
        ({"state": "failed"}, RunState(Status.FAILED)),
    ],
)
def test_old_words_are_read_as_those_of_today(
    sweep: Sweep, old: dict[str, str], new: RunState
) -> None:
    """An upgrade changes what no run has come to."""
    run = first(sweep)
    run.state_file.write_text(json.dumps(old))
    assert run.state() == new
    run.update_state()
    written = json.loads(run.state_file.read_text())
    assert (written["format"], written["status"]) == (FORMAT, new.status.value)
    assert not {"state", "fault", "error", "remedy"} & set(written)


def test_what_an_old_sweep_does_not_say_is_the_default(sweep: Sweep) -> None:
    """The oldest sweeps name neither jobs, nor what these asked for, nor a positive class."""
    info = json.loads(sweep.sweep_file.read_text())
    for name in ("jobs", "cluster", "versions", "format"):
        info.pop(name, None)
    info["images"] = {"classes": ["a", "b"]}
    sweep.sweep_file.write_text(json.dumps(info))
    read = sweep.info()
    assert (read.jobs, read.images.positive, read.epochs) == ({}, "b", 2)
    assert (read.asked("time_min"), read.cluster_config(cpus=2).cpus) == (120, 2)
