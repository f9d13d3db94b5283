"""Which process has a run in hand: one at a time, told by its heartbeat; others leave.

A run's state names its holder. Whoever begins on a run writes its own word there, and whoever
finds another's word there has lost the run and writes no more. Every file of a run is replaced in
one step and depends on nothing but the run's configuration, so two that overlap for a moment spoil
nothing; the hold saves their work, and settles who has the last word.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from threading import Event, RLock, Thread
from typing import Any

from skinjob.errors import RunError
from skinjob.files import remove_partials, write_json
from skinjob.sweeps.layout import SILENCE_S, Run, RunState, utc_now
from skinjob.sweeps.lease import may_be_training

log = logging.getLogger("skinjob")

HEARTBEAT_S = 5


class TakenError(RunError):
    """A run that another process has in hand by now."""

    def __init__(self, run: Run) -> None:
        show = f"cat {shlex.quote(str(run.state_file))}"
        super().__init__(f"{run.folder} is another process's by now", show)


class Hold:
    """The runs that this process has in hand, and its word for it."""

    def __init__(
        self,
        runs: Sequence[Run],
        refusal: Callable[[Run, RunState], str | None] = lambda run, now: None,
        **said: Any,
    ) -> None:
        """Takes those of *runs* that *refusal* gives no reason against; *said* is what they say.

        *refusal* gets the state of the moment in which the run is taken. Without locks two
        processes may still take a run together: the first to write finds the other's word there.
        """
        self.word = secrets.token_hex(8)
        self.left_alone: dict[Run, str] = {}
        """The runs that were not taken, and why."""
        self._lock = RLock()  # a signal's handler may come in between
        self._states: dict[Run, RunState] = {}
        for run in runs:
            with run.changing_state():
                now = run.state()
                if reason := refusal(run, now):
                    self.left_alone[run] = reason
                    continue
                self._states[run] = replace(
                    now,
                    holder=self.word,
                    attempts=now.attempts + 1,
                    resumed_epoch=now.epoch,
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

    def remove_partials(self, run: Run) -> None:
        """Removes the files that processes which were killed left half written in a run's folder.

        Not when the run is taken: another process may be taking it at the same moment.
        """
        with self._lock:  # a heartbeat is written through such a file too
            remove_partials(run.folder)

    def note(self, run: Run, **changes: Any) -> None:
        """Changes a run's state; the next heartbeat writes it."""
        with self._lock:
            if self.has(run):
                self._states[run] = replace(self._states[run], **changes)

    def say(self, run: Run, *, is_durable: bool = True, **changes: Any) -> bool:
        """Writes a run's state with *changes*; returns False, and writes nothing, once it is lost.

        Raises: OSError when the state cannot be written.
        """
        with self._lock, run.changing_state():
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
            except (OSError, RunError) as error:
                log.info("heartbeat: %s", error, extra={"run": run.name})

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


class Request:
    """What a job asks for: runs, and their states when it asked.

    SLURM starts a job again after preemption, a time limit or a node's failure, and now and then
    while the first is still at work on a node that it has lost sight of.
    """

    def __init__(self, runs: Sequence[Run], job_id: str | None = None) -> None:
        self.job_id = job_id
        # A shell on a node has the variable too: it is the job's own where there is a job.
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        self.is_restart = job_id is not None and restarts != "0"
        self.before = {run: run.state() for run in runs}

    def wait(self) -> None:
        """Returns once it is known which of the runs another process is training.

        Whether it lives is seen by its heartbeat, not by a clock that two machines might share. It
        takes a minute to see that there is none; less where its process is known to have ended, or
        where SLURM says so by starting this job again.
        """
        undecided = list(self.before)
        end = time.monotonic() + SILENCE_S
        while True:
            states = {run: run.state() for run in undecided}
            undecided = [
                run
                for run, now in states.items()
                if self._may_be_training(now) and self.refusal(run, now) is None
            ]
            if not undecided or time.monotonic() > end:
                return
            time.sleep(min(1.0, SILENCE_S / 10))

    def refusal(self, run: Run, now: RunState) -> str | None:
        """Returns why a run, whose state is *now*, is not this job's to train; None if it is."""
        before = self.before[run]
        has_ended = now.state == "failed" and now != before
        if now.state == "done":
            return f"{run.folder} is done"
        if self.is_restart and (now.state == "failed" or _newer_job(run, self.job_id)):
            return f"{run.folder} has failed, or is another job's since"
        if now.state == "failed" and now.fault == "cancelled" and (self.job_id or has_ended):
            return f"{run.folder} was cancelled"  # queued again since, it would say queued
        if has_ended:
            return f"{run.folder} has failed meanwhile"
        if self._may_be_training(now) and _has_spoken(before, now):
            job = f"job {now.job_id}, " if now.job_id else ""
            return f"{run.folder} is at work in {job}process {now.pid} on {now.host}"
        return None

    def _may_be_training(self, state: RunState) -> bool:
        """Says whether another process may be training a run, as far as one look can tell."""
        is_own = self.is_restart and state.job_id == self.job_id
        return not is_own and may_be_training(state)


def _newer_job(run: Run, job_id: str | None) -> bool:
    return bool(run.sweep.info()["jobs"].get(run.name, job_id) != job_id)


def _has_spoken(before: RunState, now: RunState) -> bool:
    return (now.heartbeat_utc, now.holder) != (before.heartbeat_utc, before.holder)


def _whose(state: RunState) -> str:
    """Returns who has a run, in words."""
    if state.holder is None:
        return "whoever " + (
            "cancelled it" if state.fault == "cancelled" else f"made it {state.state}"
        )
    job = f"job {state.job_id}, " if state.job_id else ""
    return f"{job}process {state.pid} on {state.host}"
