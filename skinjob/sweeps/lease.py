"""Is a run with status running still in training? Every command asks this module.

The process that trains a run holds its lease: it writes a heartbeat to state.json every few
seconds. This machine can look up its own processes. Of all others it sees only the heartbeat.
"""

from __future__ import annotations

from datetime import datetime, timezone

from skinjob.locks import process_exists
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import RunState, Status

SILENCE_S = 75
"""A job without a heartbeat for so long has gone. A heartbeat comes every five seconds, and some
file systems show a new file up to a minute late."""


def may_be_training(state: RunState) -> bool:
    """Says whether a process may hold the lease of a run with this state."""
    if state.status != Status.RUNNING or state.holder is None:
        return False
    return process_exists(state.host, state.pid) is not False


def is_recent(run: Run, state: RunState) -> bool:
    """Says whether a run's process has written to its folder within SILENCE_S.

    The node's clock may be wrong, so the file's own time must agree.
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
    """Returns a time that `utc_now` has written."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
