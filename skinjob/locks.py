"""Locks between the processes of a user, and whether a process still exists."""

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
    """Locks *file* during the block; makes the file if it does not exist.

    Waits up to *wait_s* for another process, and calls *tell_waiting* once if that takes long.
    Yields whether the file is locked; some file systems of clusters have no locks. Only the user
    can read the file, because everybody who can read a file can lock it.

    Raises: RunError if the file belongs to another user, OSError if it cannot be opened.
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
    """Locks an open file until it is closed; returns whether it is locked.

    Waits up to *wait_s* for another process. Returns False at once if the file system has no locks.
    """
    start, has_told = time.monotonic(), False
    while (is_free := try_lock(handle)) is False:
        waited_s = time.monotonic() - start
        if waited_s > wait_s:
            return False
        if not has_told and waited_s > PATIENCE_S:
            tell_waiting()
            has_told = True
        time.sleep(0.05)
    return bool(is_free)


def try_lock(handle: int) -> bool | None:
    """Locks an open file. Returns False if another process has the lock, None without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def is_locked(file: Path) -> bool | None:
    """Returns whether another process has locked a file; None if that cannot be known."""
    try:
        with file.open("r+b") as content:  # NFS locks only files that are open for writing
            is_free = try_lock(content.fileno())
    except OSError:
        return None
    return None if is_free is None else not is_free


def process_exists(host: str | None, pid: int | None, words: str = "") -> bool | None:
    """Returns whether a process exists; None if this machine cannot know.

    Its command line must contain *words*, because process ids are used again.
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
    except OSError:  # a system without /proc, or the process has just ended
        return None if words else True
