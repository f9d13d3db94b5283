"""Downloads a file over HTTP(S), through the user's proxy, and resumes a broken transfer.

The standard library's urllib is enough (http_proxy, https_proxy, no_proxy, redirects,
certificates), so the laptop needs no other package.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import shlex
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skinjob.console import progress
from skinjob.errors import DownloadError
from skinjob.files import sha256_file

TIMEOUT_S = 20.0  # for a connection, and for each block of a transfer
PAUSES_S = (0.5, 2.0, 5.0)  # after broken transfers without a new byte
BLOCK_BYTES = 1 << 18

_TEMPORARY = {408, 416, 425, 429, 500, 502, 503, 504}  # the next try may succeed
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _BrokenError(Exception):
    """A transfer that stopped before its end and can be resumed."""


@dataclass(frozen=True)
class Download:
    """A file on a server, its path here, and the fixes that errors show."""

    url: str
    path: Path
    """The file with the received bytes. If it is named by the digest and not by the server, another
    server can finish the download."""
    sha256: str
    """64 hex digits, or the first of them if no more are known."""
    again: str
    """The command that starts the download again."""
    elsewhere: str
    """The command that does not need this address."""
    size_bytes: int | None = None

    @property
    def done_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def download(file: Download) -> None:
    """Downloads the bytes that `file.path` does not have yet, and checks its digest.

    Shows a progress bar. Resumes a broken transfer, up to three times without a new byte. After any
    exception, also Ctrl-C, `file.path` keeps the received bytes, unless they are wrong.

    Raises:
        DownloadError: the server cannot be reached, refuses, sends an HTML page or another file, or
            the transfer breaks repeatedly; or the disk is full.
    """
    if file.done_bytes and not find_mismatch(file.path, file.sha256, file.size_bytes):
        return
    in_pieces = _transfer(file)
    problem = find_mismatch(file.path, file.sha256, file.size_bytes)
    if problem and in_pieces:  # pieces of two versions, or of an older bad file
        file.path.unlink()
        _transfer(file)
        problem = find_mismatch(file.path, file.sha256, file.size_bytes)
    if problem:
        file.path.unlink()
        raise DownloadError(f"{file.url}: {problem}", file.again)


def find_mismatch(path: Path, sha256: str, size_bytes: int | None = None) -> str:
    """Returns how a file differs from the expected file; '' if it does not.

    Raises: OSError if it cannot be read.
    """
    actual = sha256_file(path)
    if actual.startswith(sha256):
        return ""
    with path.open("rb") as content:
        if looks_like_html(content.read(512)):
            return "an HTML page instead of the file"
    size = f"{path.stat().st_size:,}{f' of {size_bytes:,}' if size_bytes else ''} bytes"
    return f"damaged, incomplete or another file: {size} with SHA-256 {actual}, {sha256} expected"


def looks_like_html(head: bytes) -> bool:
    """Returns whether a file is a web page, by its first bytes."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


@contextlib.contextmanager
def explain_full_disk(folder: Path, needed_bytes: int | None, again: str) -> Iterator[None]:
    """Turns an error of a full disk in the block into a DownloadError with the free bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        needed = f"{needed_bytes:,} bytes needed" if needed_bytes else "more is needed"
        free_bytes = shutil.disk_usage(folder).free
        raise DownloadError(
            f"{folder}: {error.strerror}: {needed}, {free_bytes:,} free",
            f"df -h {shlex.quote(str(folder))}; {again}   # when there is space; it resumes",
        ) from error


def _transfer(file: Download) -> bool:
    """Downloads the remaining bytes; returns whether the file came in several pieces."""
    in_pieces, tries, most_bytes = file.done_bytes > 0, 0, file.done_bytes
    while True:
        try:
            with _open(file) as response:
                _receive(response, file)
            return in_pieces
        except _BrokenError as error:
            in_pieces = in_pieces or file.done_bytes > 0
            tries = 1 if file.done_bytes > most_bytes else tries + 1
            most_bytes = max(most_bytes, file.done_bytes)
            if tries > len(PAUSES_S):
                raise DownloadError(
                    f"{file.url}: the transfer broke {tries} times without a new byte,"
                    f" at {file.done_bytes:,} bytes: {error}",
                    f"{file.again}   # it resumes",
                ) from error
            time.sleep(PAUSES_S[tries - 1])


# --- asking -----------------------------------------------------------------------------------


def _open(file: Download) -> Any:
    """Returns the response of the server, for the bytes that are still needed."""
    headers = {"User-Agent": "skinjob", "Accept-Encoding": "identity"}
    if file.done_bytes:
        headers["Range"] = f"bytes={file.done_bytes}-"
    try:
        # A new opener each time: urlopen remembers the proxies of its first call.
        opener = urllib.request.build_opener()
        return opener.open(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as answer:
        with answer:
            raise _refused(answer, file) from answer
    except urllib.error.URLError as error:
        raise _unreachable(error.reason, file) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise DownloadError(f"{file.url}: not an address: {error}", file.elsewhere) from error
    except (OSError, http.client.HTTPException) as error:  # after the connection
        raise _BrokenError(str(error) or type(error).__name__) from error


def _refused(answer: urllib.error.HTTPError, file: Download) -> Exception:
    words = f"the server answered {answer.code} {answer.reason}"
    if answer.code == 416:  # the server's file is not longer than ours
        file.path.unlink()
    if answer.code in _TEMPORARY:
        return _BrokenError(words)
    if answer.code == 407:
        proxy = "http://NAME:PASSWORD@HOST:PORT"
        fix = f"export http_proxy={proxy} https_proxy={proxy}; {file.again}"
        return DownloadError(f"{file.url}: {words}: the proxy asks for a name and password", fix)
    return DownloadError(f"{file.url}: {words}", file.elsewhere)


def _unreachable(reason: Any, file: Download) -> DownloadError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(
            f"{file.url}: its certificate cannot be verified: {reason.verify_message}",
            f"export SSL_CERT_FILE=SITE_CA.pem; {file.again}"
            "   # if your site has its own certificates; a network login has the same effect",
        )
    explained = getattr(reason, "strerror", None) or reason
    return DownloadError(
        f"{file.url}: cannot be reached{_through_proxy(file.url)}: {explained}",
        f"export https_proxy=http://HOST:PORT; {file.again}   # or: {file.elsewhere}",
    )


def _through_proxy(url: str) -> str:
    """Returns " through the proxy HOST:PORT" if *url* has a proxy; never its password."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if not proxy or urllib.request.proxy_bypass(address.netloc):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]}"


# --- receiving --------------------------------------------------------------------------------


def _receive(response: Any, file: Download) -> None:
    """Appends the body to the file (206), or replaces the file by it (200)."""
    start = _start(response, file)
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else file.size_bytes
    done_bytes, block = start, _read(response)
    # Before the file is opened: a login page must not replace the bytes that it already has.
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml") or (
        start == 0 and looks_like_html(block)
    ):
        origin = f" (from {response.url})" if response.url != file.url else ""
        raise DownloadError(
            f"{file.url}: an HTML page came instead of the file{origin}: a network login page?",
            f"{file.again}   # after logging in to this network with a browser",
        )
    _require_size(file, total)
    with explain_full_disk(file.path.parent, total, file.again):
        if total and shutil.disk_usage(file.path.parent).free < total - start:
            raise OSError(errno.ENOSPC, "disk full")
        with (
            file.path.open("ab" if start else "wb") as content,
            progress(Path(urlsplit(file.url).path).name, total or 0, unit="bytes") as show,
        ):
            while block:
                done_bytes += len(block)
                _require_size(file, max(done_bytes, total or 0))
                content.write(block)
                show(done_bytes)
                block = _read(response)
    if total and done_bytes < total:
        raise _BrokenError(f"{done_bytes:,} of {total:,} bytes came")


def _start(response: Any, file: Download) -> int:
    """Returns the position of the body in the file; 0 if the server does not know ranges."""
    if response.status != 206:
        return 0
    span = response.headers.get("Content-Range", "")
    if not span.startswith(f"bytes {file.done_bytes}-"):
        file.path.unlink(missing_ok=True)  # the next request is for the whole file
        raise _BrokenError(f"the server sent another part: {span}")
    return file.done_bytes


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(BLOCK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _require_size(file: Download, num_bytes: int | None) -> None:
    if num_bytes and file.size_bytes and num_bytes != file.size_bytes:
        raise DownloadError(
            f"{file.url}: {num_bytes:,} bytes, {file.size_bytes:,} expected: another file",
            file.elsewhere,
        )
