"""One file over HTTP(S), through whatever proxy is set, resumed from where it broke.

The standard library's urllib does what is needed (http_proxy, https_proxy, no_proxy, redirects,
certificates), so the laptop needs no other package.

A partial file is named by its digest, not by its server: what one mirror began, another may
finish. Whether the whole is right is for the caller to say, from that digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import re
import shlex
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skinjob.console import progress
from skinjob.errors import WeightsError

TIMEOUT_S = 20.0  # to connect, and for silence within a transfer
PAUSES_S = (0.5, 2.0, 5.0)  # after a broken transfer; any new byte starts this list again
BLOCK_BYTES = 1 << 18
MAX_BYTES = 1 << 30  # of a file whose size nobody told; ResNet18 has 47 MB

_ASK_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # the statuses that may pass by themselves


class _BrokenError(Exception):
    """A transfer that stopped before its end, and may be taken up again."""


def download(
    url: str,
    partial: Path,
    *,
    expected_size: int | None = None,
    again: str = "skinjob fetch-weights",
) -> None:
    """Completes *partial* from *url*, going on from the bytes that it already has.

    Shows a progress bar. A broken transfer is taken up again by itself, up to three times
    without a new byte. Whatever is raised, Ctrl-C included, *partial* keeps what has come.
    *expected_size* is in bytes; *again* is the command that errors offer to paste.

    Raises:
        WeightsError: the server cannot be reached, refuses, serves an HTML page or a file of
            another size, or breaks off again and again; or the disk is full.
    """
    etag, tries, most = "", 0, _size(partial)
    while expected_size is None or _size(partial) != expected_size:
        try:
            with _ask(url, partial, etag, again) as response:
                etag = response.headers.get("ETag", "")
                _receive(response, url, partial, expected_size, again)
            return
        except _BrokenError as error:
            tries = 1 if _size(partial) > most else tries + 1
            most = max(most, _size(partial))
            if tries > len(PAUSES_S):
                raise _gave_up(url, partial, error, again) from error
            time.sleep(PAUSES_S[tries - 1])


@contextlib.contextmanager
def one_at_a_time(lock: Path, again: str) -> Iterator[None]:
    """Holds *lock* (an empty file, left behind) while the block runs; the kernel frees it.

    Raises:
        WeightsError: another process holds it, or the folder cannot be written to.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = lock.open("ab")
    except OSError as error:
        fix = f"{again} --out FOLDER   # one that you may write to"
        raise WeightsError(f"{lock.parent}: cannot write there: {error.strerror}", fix) from error
    with holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(
                f"{lock.parent}: another skinjob fetch-weights is writing there",
                f"{again}   # when that one has ended",
            ) from error
        except OSError:
            # a network disk without locks: two fetches may then spoil one partial file, and its
            # digest tells
            pass
        yield


@contextlib.contextmanager
def explaining_full_disk(folder: Path, needed_bytes: int | None, again: str) -> Iterator[None]:
    """Turns "no space left" in the block into a WeightsError that tells free and needed bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _full_disk(folder, needed_bytes, error.strerror or "disk full", again) from error


def check_free_space(folder: Path, needed_bytes: int, again: str) -> None:
    """Changes nothing; raises WeightsError when the disk of *folder* has no such room."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _full_disk(folder, needed_bytes, "disk full", again)


def looks_like_html(head: bytes) -> bool:
    """Returns whether a file that begins so is a web page; no weights begin with "<"."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


# --- asking -----------------------------------------------------------------------------------


def _ask(url: str, partial: Path, etag: str, again: str) -> Any:
    """Returns the server's answer, its body not yet read: the file from where *partial* ends."""
    headers = {"User-Agent": "skinjob", "Accept-Encoding": "identity"}
    have = _size(partial)
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag.startswith('"'):  # a weak tag (W/...) may not be used so
            headers["If-Range"] = etag
    try:
        # a new opener each time: urlopen keeps the proxies it saw first for as long as it lives
        opener = urllib.request.build_opener()
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as answer:
        with answer:
            _judge_refusal(answer, url, partial, again)
        raise _BrokenError(f"the server answered {answer.code} {answer.reason}") from answer
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason, again) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise WeightsError(
            f"{url}: not an address: {error}", "skinjob fetch-weights --source URL"
        ) from error
    except (OSError, http.client.HTTPException) as error:  # connected, then cut off or silent
        raise _BrokenError(str(error) or type(error).__name__) from error


def _judge_refusal(answer: urllib.error.HTTPError, url: str, partial: Path, again: str) -> None:
    """Returns when asking again may help; raises WeightsError when it will not."""
    if answer.code == 416:  # the file has no bytes there: ours is as long as it, or longer
        partial.unlink()
    elif answer.code == 407:
        raise WeightsError(
            f"{url}: the proxy asks for a name and password (407 {answer.reason})",
            f"export http_proxy=http://NAME:PASSWORD@HOST:PORT https_proxy=$http_proxy; {again}",
        )
    elif answer.code not in _ASK_AGAIN:
        raise WeightsError(
            f"{url}: the server answered {answer.code} {answer.reason}",
            "skinjob fetch-weights --source FILE"
            "   # after downloading it with a browser; or --source with another address",
        )


def _unreachable(url: str, reason: Any, again: str) -> WeightsError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return WeightsError(
            f"{url}: its certificate cannot be verified: {reason.verify_message}",
            f"export SSL_CERT_FILE=SITE_CA.pem; {again}"
            "   # if your site has its own; a login page in between looks the same",
        )
    explained = getattr(reason, "strerror", None) or reason
    return WeightsError(
        f"{url}: cannot be reached{_through_proxy(url)}: {explained}",
        f"export https_proxy=http://HOST:PORT; {again}"
        "   # or download it with a browser: skinjob fetch-weights --source FILE",
    )


def _through_proxy(url: str) -> str:
    """Returns " through the proxy HOST:PORT" when one is set for *url*; never its password."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if not proxy or urllib.request.proxy_bypass(address.netloc):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]}"


def _gave_up(url: str, partial: Path, fault: _BrokenError, again: str) -> WeightsError:
    return WeightsError(
        f"{url}: the transfer broke {len(PAUSES_S) + 1} times without a new byte,"
        f" at {_size(partial):,} bytes: {fault}",
        f"{again}   # goes on from there",
    )


# --- receiving --------------------------------------------------------------------------------


def _receive(response: Any, url: str, partial: Path, expected_size: int | None, again: str) -> None:
    """Writes the body to *partial*: appended to it (206), or in its place (200)."""
    start = _start(response, partial)
    block = _read(response)
    # before *partial* is opened: a login page must not cost the bytes that have come
    _check_no_html(response, url, block, start, again)
    total = _total(response, start, url, expected_size, again)
    done = start
    if total is not None:
        check_free_space(partial.parent, total - start, again)
    with (
        explaining_full_disk(partial.parent, total, again),
        partial.open("ab" if start else "wb") as file,
        progress(Path(urlsplit(url).path).name, total or 0, unit="bytes") as show,
    ):
        while block:
            file.write(block)
            done += len(block)
            if done > (total or MAX_BYTES):
                raise _wrong_size(url, f"more than {total or MAX_BYTES:,}", expected_size)
            show(done)
            block = _read(response)
    if total is not None and done < total:
        raise _BrokenError(f"{done:,} of {total:,} bytes came")


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(BLOCK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _start(response: Any, partial: Path) -> int:
    """Returns the byte of the file that the body begins with; 0 from a server without Range."""
    if response.status != 206:
        return 0
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if not span or int(span[1]) != _size(partial):
        partial.unlink(missing_ok=True)  # asking for a part is no use here
        raise _BrokenError(f"another part than asked for: {response.headers.get('Content-Range')}")
    return int(span[1])


def _check_no_html(response: Any, url: str, block: bytes, start: int, again: str) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml") or (
        start == 0 and looks_like_html(block)
    ):
        landed = f" (from {response.url})" if response.url != url else ""
        raise WeightsError(
            f"{url}: an HTML page came in place of the file{landed}: a network login page?",
            f"{again}   # after logging in to this network with a browser",
        )


def _total(
    response: Any, start: int, url: str, expected_size: int | None, again: str
) -> int | None:
    """Returns the file's size in bytes, None when neither server nor caller told it."""
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    if total is not None and total > MAX_BYTES:
        raise _wrong_size(url, f"{total:,}", expected_size)
    if total is not None and expected_size is not None and total != expected_size:
        raise _wrong_size(url, f"{total:,}", expected_size)
    return total if total is not None else expected_size


def _wrong_size(url: str, found: str, expected_size: int | None) -> WeightsError:
    wanted = f"{expected_size:,}" if expected_size else f"{MAX_BYTES:,} at most"
    return WeightsError(
        f"{url}: {found} bytes, {wanted} expected: cut off, or another file",
        "skinjob fetch-weights --source URL   # another mirror",
    )


def _full_disk(folder: Path, needed_bytes: int | None, found: str, again: str) -> WeightsError:
    free = shutil.disk_usage(folder).free
    needed = f"{needed_bytes:,} bytes needed" if needed_bytes else "more is needed"
    return WeightsError(
        f"{folder}: {found}: {needed}, {free:,} free",
        f"df -h {shlex.quote(str(folder))}; {again}   # once there is room; what has come is kept",
    )


def _size(path: Path) -> int:
    """Returns a file's size in bytes, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
