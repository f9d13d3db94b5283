"""Whether a run that says running is still being trained: every command asks here.

The process that trains a run holds its lease: it writes a heartbeat to state.json every few
seconds. A process of this machine can be looked up; any other is known by its heartbeat alone.
"""

from __future__ import annotations

from datetime import datetime, timezone

from skinjob.locks import process_exists
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import RunState, Status

SILENCE_S = 75
"""A job that was silent for so long is gone: it speaks every five seconds, and some file systems
show what it wrote up to a minute late."""


def may_be_training(state: RunState) -> bool:
    """Says whether a process may hold the lease of a run, as far as one look at its state tells."""
    if state.status != Status.RUNNING or state.holder is None:
        return False
    return process_exists(state.host, state.pid) is not False


def is_recent(run: Run, state: RunState) -> bool:
    """Says whether a run's process has written to its folder within the last minute or so.

    Both clocks have to agree: the node's, which may be ahead, and the one that stamps the file.
    """
    heard_utc = state.heartbeat_utc or state.queued_utc
    if heard_utc is None:
        return False
    try:
        written = run.state_file.stat().st_mtime
    except OSError:
        return False
    now = datetime.now(timezone.utc)
    heard_s = (now - parse_utc(heard_utc)).total_seconds()
    written_s = now.timestamp() - written
    return max(heard_s, written_s) < SILENCE_S and written_s > -SILENCE_S


def parse_utc(text: str) -> datetime:
    """Returns a time of state.json, as `utc_now` writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
