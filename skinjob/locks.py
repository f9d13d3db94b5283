"""Locks between the processes of a user, and whether a process is still there."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from skinjob.errors import RunError

PATIENCE_S = 1  # a submit mostly takes less


@contextlib.contextmanager
def locked(
    file: Path,
    *,
    wait_s: float = math.inf,
    tell_waiting: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Holds a lock on *file*, which is made if need be, once no other process holds it.

    Calls *tell_waiting* once where another process holds it for long. Yields whether there is a
    lock: after *wait_s* there is none, nor on some file systems that clusters share. The file is
    readable by the user alone, because anyone who can read a file can lock it.

    Raises: RunError when the file belongs to another user, OSError when it cannot be opened.
    """
    try:
        handle = os.open(file, os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDWR, 0o600)
    except PermissionError:
        if not file.exists():
            raise
        raise _foreign_lock(file) from None
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise _foreign_lock(file)
        yield lock(handle, wait_s, tell_waiting)
    finally:
        os.close(handle)


def _foreign_lock(file: Path) -> RunError:
    quoted = shlex.quote(str(file))
    return RunError(f"{file} is not a file of yours", f"ls -l {quoted}; rm {quoted}")


def lock(handle: int, wait_s: float, tell_waiting: Callable[[], None] = lambda: None) -> bool:
    """Locks an open file, for as long as it is open; returns whether it is locked.

    Waits up to *wait_s* for another process, and returns False at once without locks there.
    """
    start, is_told = time.monotonic(), False
    while (answer := try_lock(handle)) is False:
        waited_s = time.monotonic() - start
        if waited_s > wait_s:
            return False
        if not is_told and waited_s > PATIENCE_S:
            tell_waiting()
            is_told = True
        time.sleep(0.05)
    return bool(answer)


def try_lock(handle: int) -> bool | None:
    """Locks an open file; returns False when another process has the lock, None without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def is_locked(file: Path) -> bool | None:
    """Says whether another process has the lock on a file; None where that cannot be seen."""
    try:
        with file.open("r+b") as content:  # to be written: else NFS gives no lock
            answer = try_lock(content.fileno())
    except OSError:
        return None
    return None if answer is None else not answer


def process_exists(host: str | None, pid: int | None, words: str = "") -> bool | None:
    """Says whether a process is there; None where this machine cannot see it.

    *words* have to stand in its command line: numbers of processes are used again.
    """
    if pid is None or host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return not words
    try:
        return os.fsencode(words) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # a system without /proc, or it has just ended
        return None if words else True
