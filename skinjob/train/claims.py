"""Claims on the files of a cache, which several jobs write.

A claim is a hint, not a lock. It says that a process makes a file, and others begin with another
file. No result depends on it: two processes that make the same file write the same bytes, each in
a single step. If the owner of a claim dies, others only lose time.
"""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from skinjob.files import remove_abandoned
from skinjob.locks import process_exists

ABANDONED_S = 24 * 3600
STALE_S = 60  # a claim is touched every second or so


def claim(file: Path) -> bool:
    """Claims a file for this process; returns False when another process makes it."""
    mark = _mark(file)
    mark.parent.mkdir(parents=True, exist_ok=True)
    if mark.exists() and _is_stale(mark):
        mark.unlink(missing_ok=True)
    try:
        with mark.open("x", encoding="utf-8") as owner:
            owner.write(f"{socket.gethostname()} {os.getpid()}")
    except FileExistsError:
        return False
    return True


def renew(file: Path) -> None:
    """Tells others that this process is still making a file."""
    with suppress(FileNotFoundError):
        os.utime(_mark(file))


def release(file: Path) -> None:
    """Ends a claim."""
    _mark(file).unlink(missing_ok=True)


def claimed_by(file: Path) -> str:
    """Returns host and process id of the process that makes a file, or ''."""
    try:
        return _mark(file).read_text(encoding="utf-8")
    except OSError:
        return ""


def is_claimed(file: Path) -> bool:
    """Returns whether a process makes a file."""
    mark = _mark(file)
    return mark.exists() and not _is_stale(mark)


def clear_up(folder: Path) -> None:
    """Removes the partial files and the claims of processes that were killed."""
    with suppress(OSError):  # no folder yet, or a full disk
        remove_abandoned(folder, _now(folder), ABANDONED_S)
        for mark in folder.glob("*.claim"):
            if _is_stale(mark):
                mark.unlink(missing_ok=True)


def _mark(file: Path) -> Path:
    return file.with_suffix(".claim")


def _is_stale(mark: Path) -> bool:
    """Returns whether the owner of a claim has ended, or has not renewed it for STALE_S."""
    try:
        host, _, pid = mark.read_text(encoding="utf-8").partition(" ")
        age_s = _now(mark.parent) - mark.stat().st_mtime
    except OSError:
        return False  # it has just been released
    is_ended = pid.isdecimal() and process_exists(host, int(pid)) is False
    return is_ended or age_s > STALE_S


def _now(folder: Path) -> float:
    """Returns the time of the file server, whose clock also sets the times of claims."""
    # On some file systems the file needs a name: this is one that `remove_abandoned` removes.
    with tempfile.TemporaryFile(prefix=".now..", suffix=".part", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
