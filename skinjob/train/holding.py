"""Which process has a run in hand: one at a time, told by its heartbeat; others leave.

A run's state names its holder. Whoever begins on a run writes its own word there, and whoever
finds another's word there has lost the run and writes no more. Every file of a run is replaced in
one step and depends on nothing but the run's configuration, so two that overlap for a moment spoil
nothing; the hold saves their work, and settles who has the last word.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from threading import Event, RLock, Thread
from typing import Any

from skinjob.errors import RunError
from skinjob.files import remove_partials, write_json
from skinjob.runs import SILENCE_S, Run, RunState, utc_now
from skinjob.train.cache import is_alive

log = logging.getLogger("skinjob")

HEARTBEAT_S = 5


class TakenError(RunError):
    """A run that another process has in hand by now."""

    def __init__(self, run: Run) -> None:
        show = f"cat {shlex.quote(str(run.state_file))}"
        super().__init__(f"{run.folder} is another process's by now", show)


class Hold:
    """The runs that this process has in hand, and its word for it."""

    def __init__(self, runs: Sequence[Run], **said: Any) -> None:
        """Takes *runs*, of which nobody else must be at work; *said* is what their states say."""
        self.word = secrets.token_hex(8)
        self._lock = RLock()  # a signal's handler may come in between
        self._states: dict[Run, RunState] = {}
        for run in runs:
            remove_partials(run.folder)
            before = run.state()
            self._states[run] = replace(
                before,
                holder=self.word,
                attempts=before.attempts + 1,
                resumed_epoch=before.epoch,
                **said,
            )
            self._write(run)

    @property
    def runs(self) -> list[Run]:
        """The runs that are still in hand."""
        return list(self._states)

    def has(self, run: Run) -> bool:
        return run in self._states

    def check(self, run: Run) -> bool:
        """Returns whether the run is still in hand, by what its state says now."""
        with self._lock:
            if self.has(run) and (found := run.state()).holder != self.word:
                del self._states[run]
                log.info("left to %s", _whose(found), extra={"run": run.name})
            return self.has(run)

    def note(self, run: Run, **changes: Any) -> None:
        """Changes a run's state; the next heartbeat writes it."""
        with self._lock:
            if self.has(run):
                self._states[run] = replace(self._states[run], **changes)

    def say(self, run: Run, *, is_durable: bool = True, **changes: Any) -> bool:
        """Writes a run's state with *changes*; returns False, and writes nothing, once it is lost.

        Raises: OSError when the state cannot be written.
        """
        with self._lock:
            if not self.check(run):
                return False
            self.note(run, **changes)
            self._write(run, is_durable=is_durable)
            return True

    def end(self, run: Run, **changes: Any) -> bool:
        """Writes a run's last word and lets go of it; returns whether it was still in hand."""
        with self._lock:
            try:
                return self.say(run, **changes, holder=None)
            finally:
                self._states.pop(run, None)

    def beat(self) -> None:
        """Writes a heartbeat to every run. One that cannot be written ends no training."""
        for run in self.runs:
            try:
                self.say(run, is_durable=False)
            except (OSError, RunError) as fault:
                log.info("heartbeat: %s", fault, extra={"run": run.name})

    def _write(self, run: Run, *, is_durable: bool = True) -> None:
        self._states[run] = replace(self._states[run], heartbeat_utc=utc_now())
        write_json(run.state_file, asdict(self._states[run]), is_durable=is_durable)


@contextmanager
def beating(hold: Hold) -> Iterator[None]:
    """Writes a heartbeat every few seconds, whatever this process is at."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            hold.beat()

    thread = Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def living_holders(runs: Sequence[Run], *, is_restart_of: str | None = None) -> dict[Run, RunState]:
    """Returns the states of those runs that a living process has in hand; the others can be taken.

    Whether it lives is seen by its heartbeat, not by a clock that two machines might share. It
    takes a minute to see that there is none; less where its process is known to have ended, or
    where SLURM says so by starting the job *is_restart_of* again.
    """
    found: dict[Run, RunState] = {}
    first = {run: run.state() for run in runs}
    open_runs = list(runs)
    end = time.monotonic() + SILENCE_S
    while True:
        states = {run: run.state() for run in open_runs}
        open_runs = [run for run in open_runs if _may_live(states[run], is_restart_of)]
        found |= {run: states[run] for run in open_runs if _has_spoken(first[run], states[run])}
        open_runs = [run for run in open_runs if run not in found]
        if not open_runs or time.monotonic() > end:
            return found
        time.sleep(min(1.0, SILENCE_S / 10))


def _has_spoken(before: RunState, now: RunState) -> bool:
    return (now.heartbeat_utc, now.holder) != (before.heartbeat_utc, before.holder)


def _may_live(state: RunState, is_restart_of: str | None) -> bool:
    if state.state != "running" or state.holder is None:
        return False
    if is_restart_of is not None and state.job_id == is_restart_of:
        return False
    return state.host != socket.gethostname() or state.pid is None or is_alive(state.pid)


def _whose(state: RunState) -> str:
    """Returns who has a run, in words."""
    if state.holder is None:
        return "whoever " + (
            "cancelled it" if state.fault == "cancelled" else f"made it {state.state}"
        )
    job = f"job {state.job_id}, " if state.job_id else ""
    return f"{job}process {state.pid} on {state.host}"
