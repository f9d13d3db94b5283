"""Files that are replaced in a single step, so that no reader sees a half-written file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skinjob.locks import lock, try_lock

TAIL_BYTES = 20_000  # of a log
BLOCK_BYTES = 1 << 20
LOOK_S = 10  # the longest wait for a process that only tests a lock, which takes a moment

_SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def pointer_kind(head: bytes) -> str:
    """Returns the kind of a file that Git keeps in place of the real file; '' for other files.

    >>> pointer_kind(b"version https://git-lfs.github.com/spec/v1"), pointer_kind(b"GIF89a")
    ('a Git LFS pointer', '')
    """
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer"
    return "a git-annex pointer" if head.startswith(b"/annex/objects/") else ""


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = True, is_locked: bool = False) -> Iterator[Path]:
    """Yields a path beside *path* to write to; renames it over *path* when the block succeeds.

    A reader sees the old content or the complete new content. With *is_durable* this is also true
    after a crash of the machine, because the file is flushed to disk before the rename. If the
    block raises, *path* does not change and the partial file is removed. With *is_locked* the
    partial file is locked during the block, so `remove_abandoned` does not remove it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = _locked_partial(path) if is_locked else _new_partial(path)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp made it 0600
        if is_durable:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(path)
        if is_durable:
            _sync_folder(path.parent)
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)


def _new_partial(path: Path, host: str = "") -> tuple[int, Path]:
    prefix = f".{path.name}.{host}." if host else f".{path.name}."
    try:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # the name that the user knows
        raise
    return handle, Path(name)


def _locked_partial(path: Path) -> tuple[int, Path]:
    """Returns a new partial file with this host in its name, locked if the file system can."""
    while True:
        handle, partial = _new_partial(path, _host())
        lock(handle, LOOK_S)
        if partial.exists():  # before the lock, another process may remove it as abandoned
            return handle, partial
        os.close(handle)


def _host() -> str:
    """Returns the name of this host without dots, which separate the parts of a file name."""
    return quote(socket.gethostname(), safe="").replace(".", "%2E")


def absolute(path: Path) -> Path:
    """Returns an absolute path, with the names that the user's shell shows.

    No link is resolved, because its target may not exist on another machine.
    """
    here = Path(os.environ.get("PWD", ""))
    try:
        is_here = here.is_absolute() and here.samefile(os.curdir)
    except OSError:
        is_here = False
    return (here if is_here else Path.cwd()) / path if not path.is_absolute() else path


def is_full(folder: Path) -> bool:
    """Returns whether the disk of a folder has less than a megabyte free."""
    free: int = shutil.disk_usage(folder).free
    return free < 1_000_000


def remove_partials(folder: Path) -> None:
    """Removes all partial files in a folder. A process that is writing such a file fails."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path, now: float, after_s: float) -> None:
    """Removes the partial files in a folder that no process is writing.

    A file of this host is removed if it is not locked. Locks of other hosts may be invisible, so
    other files are removed *after_s* after their last change. *now* is in seconds since 1970.
    """
    for partial in folder.glob(".*.part"):
        # Skipped: files that have gone, of other users, or locked by their writer.
        with contextlib.suppress(OSError), partial.open("r+b") as file:
            is_free = try_lock(file.fileno())
            is_own = is_free is not None and partial.name.split(".")[-3] == _host()
            is_old = now - os.fstat(file.fileno()).st_mtime >= after_s
            if is_free is not False and (is_own or is_old):
                partial.unlink()


def write_text(path: Path, text: str, *, is_durable: bool = True) -> None:
    """Replaces *path* by *text* in a single step."""
    with replacing(path, is_durable=is_durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, is_durable: bool = True) -> None:
    """Replaces *path* by *value* as indented JSON in a single step."""
    write_text(path, json.dumps(value, indent=2) + "\n", is_durable=is_durable)


def sorted_safetensors(content: bytes) -> bytes:
    """Returns a safetensors file with a sorted header: equal content gives equal bytes.

    The library writes the metadata in any order. The header is 8 bytes of length, then
    JSON, then spaces, because the numbers must begin at a multiple of 8.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def tail(file: Path, count: int, num_bytes: int = TAIL_BYTES) -> list[str]:
    """Returns the last lines in the last bytes that are not empty; [] if it cannot be read."""
    try:
        with file.open("rb") as content:
            content.seek(0, os.SEEK_END)
            content.seek(max(0, content.tell() - num_bytes))
            text = content.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def csv_text(text: str) -> str:
    """Returns the text of a CSV cell, with an apostrophe before a spreadsheet's formula.

    A plain number does not change.

    >>> csv_text("=cmd|x"), csv_text("@sum(a1)"), csv_text("-1"), csv_text("nevus")
    ("'=cmd|x", "'@sum(a1)", '-1', 'nevus')
    """
    is_formula = text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_sums(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields the lines of `sha256sum`, each with its file and its digest; '' if it has none.

    >>> list(read_sums(f"{'A' * 64} *a.txt\\nother\\n"))[1:], next(read_sums(f"{'A' * 64}  b"))[1]
    ([('other', '', '')], 'b')
    """
    for line in filter(None, text.split("\n")):  # splitlines splits at more characters
        match = _SUM.fullmatch(line)
        yield (line, match[2], match[1].lower()) if match else (line, "", "")


def sha256_start(handle: int, num_bytes: int) -> bytes:
    """Returns the SHA-256 of the first bytes of an open file, 32 bytes."""
    digest = hashlib.sha256()
    for start in range(0, num_bytes, BLOCK_BYTES):
        digest.update(os.pread(handle, min(BLOCK_BYTES, num_bytes - start), start))
    return digest.digest()


def _sync_folder(folder: Path) -> None:
    """Flushes a rename in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot
        pass
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
