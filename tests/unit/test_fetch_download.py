"""A download goes on where it broke, and says what is wrong when it cannot."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_server import LOGIN_PAGE, Site, serving

from skinjob import download as module
from skinjob.download import Download
from skinjob.errors import DownloadError

CONTENT = random.Random(0).randbytes(1_500_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AGAIN, ELSEWHERE = "skinjob fetch-something", "skinjob fetch-something --source FILE"
PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_pauses_and_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES_S", (0.0, 0.0, 0.0))
    for name in PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def download(
    url: str, partial: Path, *, size_bytes: int | None = None, sha256: str = DIGEST
) -> None:
    module.download(Download(url, partial, sha256, AGAIN, ELSEWHERE, size_bytes))


@pytest.fixture(name="site")
def _site() -> Iterator[Site]:
    with serving(Site(files={"/weights.pth": CONTENT})) as site:
        yield site


@pytest.fixture(name="partial")
def _partial(tmp_path: Path) -> Path:
    return tmp_path / ".weights.part"


def test_download_brings_every_byte(site: Site, partial: Path) -> None:
    """What arrives is what the server has."""
    download(f"{site.base}/weights.pth", partial, size_bytes=len(CONTENT))
    assert partial.read_bytes() == CONTENT


def test_broken_transfers_are_taken_up_by_themselves(site: Site, partial: Path) -> None:
    """A connection that breaks again and again costs no byte twice while it brings new ones."""
    site.cuts = [100_000] * 6  # more breaks than there are tries without progress
    download(f"{site.base}/weights.pth", partial, size_bytes=len(CONTENT))
    assert partial.read_bytes() == CONTENT
    assert site.ranges == ["", *(f"bytes={100_000 * n}-" for n in range(1, 7))]


def test_an_earlier_run_is_gone_on_from(site: Site, partial: Path) -> None:
    """A second fetch asks only for the bytes that the first did not bring."""
    partial.write_bytes(CONTENT[:700_000])
    download(f"{site.base}/weights.pth", partial)
    assert partial.read_bytes() == CONTENT
    assert site.ranges == ["bytes=700000-"]


def test_a_complete_partial_file_needs_no_server(partial: Path) -> None:
    """Bytes that are all there are not asked for again."""
    partial.write_bytes(CONTENT)
    download("http://127.0.0.1:1/weights.pth", partial, size_bytes=len(CONTENT))
    assert partial.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(site: Site, partial: Path) -> None:
    """A server that ignores the asked part does not get its first bytes appended to ours."""
    site.knows_ranges = False
    partial.write_bytes(CONTENT[:700_000])
    download(f"{site.base}/weights.pth", partial)
    assert partial.read_bytes() == CONTENT


def test_a_file_that_changes_on_the_server_starts_anew(
    site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves of two versions are found by the digest, and the file is downloaded once more."""
    other = random.Random(1).randbytes(1_500_000)
    site.cuts = [100_000]

    def replace_file(_: float) -> None:
        site.files["/weights.pth"] = other

    monkeypatch.setattr("time.sleep", replace_file)  # between the two transfers
    download(f"{site.base}/weights.pth", partial, sha256=hashlib.sha256(other).hexdigest())
    assert partial.read_bytes() == other


@pytest.mark.parametrize("digits", [64, 8])
def test_another_file_is_refused_and_not_kept(site: Site, partial: Path, digits: int) -> None:
    """What has another digest is downloaded once, named with both digests, and removed."""
    site.files["/weights.pth"] = other = random.Random(1).randbytes(1000)
    actual, url = hashlib.sha256(other).hexdigest(), f"{site.base}/weights.pth"
    words = f"{url}: damaged, .* 1,000 bytes with SHA-256 {actual}, {DIGEST[:digits]} expected"
    with pytest.raises(DownloadError, match=words):
        download(url, partial, sha256=DIGEST[:digits])
    assert len(site.headers) == 1
    assert not partial.exists()


def test_a_partial_file_that_is_too_long_starts_anew(site: Site, partial: Path) -> None:
    """Bytes beyond the file's end (416) are thrown away, not kept for ever."""
    partial.write_bytes(CONTENT + b"more")
    download(f"{site.base}/weights.pth", partial, size_bytes=len(CONTENT))
    assert partial.read_bytes() == CONTENT


def test_a_transfer_that_never_moves_gives_up_and_keeps_its_bytes(
    site: Site, partial: Path
) -> None:
    """A transfer that breaks without a new byte ends in an error that tells how far it came."""
    site.cuts = [100_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(
        DownloadError, match="broke 4 times without a new byte, at 100,000"
    ) as found:
        download(f"{site.base}/weights.pth", partial)
    assert found.value.fix.startswith(AGAIN)
    assert partial.read_bytes() == CONTENT[:100_000]


def test_a_silent_server_is_not_waited_for_for_ever(
    site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops sending without closing counts as a broken transfer."""
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    site.hold_after, site.cuts = 1000, [1000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="timed out"):
        download(f"{site.base}/weights.pth", partial)


@pytest.mark.parametrize(
    ("content_type", "page"),
    [("text/html; charset=utf-8", b"Please log in"), ("application/octet-stream", LOGIN_PAGE)],
)
def test_a_login_page_is_no_file(site: Site, partial: Path, content_type: str, page: bytes) -> None:
    """A captive portal's page is known by its type or its beginning, and costs no byte."""
    partial.write_bytes(CONTENT[:1000])
    site.knows_ranges, site.content_type = False, content_type
    site.files = {"/login": page}
    site.redirects = {"/weights.pth": "/login"}
    with pytest.raises(DownloadError, match=r"an HTML page came .*/login\).*login page") as found:
        download(f"{site.base}/weights.pth", partial)
    assert "browser" in found.value.fix
    assert partial.read_bytes() == CONTENT[:1000]


def test_a_redirect_is_followed(site: Site, partial: Path) -> None:
    """A mirror may send us on to where the file lies, and still be resumed from."""
    site.redirects = {"/moved.pth": "/weights.pth"}
    site.cuts = [100_000]
    download(f"{site.base}/moved.pth", partial)
    assert partial.read_bytes() == CONTENT
    assert site.ranges[-1] == "bytes=100000-"


def test_a_missing_file_is_told_with_its_address(site: Site, partial: Path) -> None:
    """A 404 is told at once, and leaves nothing behind."""
    with pytest.raises(DownloadError, match=rf"{site.base}/other.pth: the server answered 404"):
        download(f"{site.base}/other.pth", partial)
    assert len(site.headers) == 1
    assert not partial.exists()


def test_an_overloaded_server_is_asked_again(site: Site, partial: Path) -> None:
    """A 503 is asked again a few times, then told."""
    site.status = 503
    with pytest.raises(DownloadError, match=r"broke 4 times .*503 Service Unavailable"):
        download(f"{site.base}/weights.pth", partial)
    assert len(site.headers) == 4


def test_a_file_of_another_size_is_refused_before_it_comes(site: Site, partial: Path) -> None:
    """A mirror's cut-off file is refused from its headers, with both sizes."""
    site.files["/weights.pth"] = CONTENT[:1_000_000]
    with pytest.raises(DownloadError, match="1,000,000 bytes, 1,500,000 expected"):
        download(f"{site.base}/weights.pth", partial, size_bytes=len(CONTENT))
    assert not partial.exists()


def test_a_body_without_end_is_not_stored(site: Site, partial: Path) -> None:
    """A server that does not tell the size cannot fill the disk with more than was expected."""
    site.tells_length = False
    with pytest.raises(DownloadError, match=r"1,[\d,]+ bytes, 1,000,000 expected"):
        download(f"{site.base}/weights.pth", partial, size_bytes=1_000_000)


def test_no_connection_is_told_at_once_with_ways_round(partial: Path) -> None:
    """Without internet the error names the address and offers a proxy or a browser."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth"
        with pytest.raises(DownloadError, match=f"{re.escape(url)}: cannot be reached") as found:
            download(url, partial)
    assert "https_proxy=" in found.value.fix
    assert "--source FILE" in found.value.fix


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/x", "http:///x", "http://" + "a" * 70])
def test_a_mistyped_address_is_an_error(partial: Path, url: str) -> None:
    """An address that is none is told as one, not as a crash."""
    with pytest.raises(DownloadError, match=re.escape(url)):
        download(url, partial)


def test_the_proxy_is_used(site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """http_proxy is honoured: a host that only the proxy can find is downloaded from."""
    with serving(site, as_proxy=True) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        download("http://skinjob.invalid/weights.pth", partial)
    assert partial.read_bytes() == CONTENT
    assert site.proxied == ["http://skinjob.invalid/weights.pth"]


def test_no_proxy_goes_past_the_proxy(
    site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """no_proxy is honoured: a host on that list is asked directly."""
    with serving(site, as_proxy=True) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        download(f"{site.base}/weights.pth", partial)
    assert partial.read_bytes() == CONTENT
    assert site.proxied == []


def test_a_dead_proxy_is_named_without_its_password(
    partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error tells that a proxy stands between, and never prints its password."""
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"through the proxy 127\.0\.0\.1:1: ") as found:
        download("http://skinjob.invalid/weights.pth", partial)
    assert "secret" not in found.value.message + found.value.fix
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"cannot be reached: "):  # no proxy stands between here
        download("http://127.0.0.1:1/weights.pth", partial)


def test_a_proxy_that_wants_a_password_is_told(
    site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 407 leads to the variable that carries name and password."""
    site.status = 407
    with pytest.raises(DownloadError, match="the proxy asks for a name and password") as found:
        download(f"{site.base}/weights.pth", partial)
    assert "NAME:PASSWORD@" in found.value.fix


def test_a_disk_without_room_is_told_before_the_transfer(
    site: Site, partial: Path, small_disk: Path
) -> None:
    """A disk that is too small is told with the free and the needed bytes, from the headers."""
    with pytest.raises(DownloadError, match=r"1,500,000 bytes needed, [\d,]+ free"):
        download(f"{site.base}/weights.pth", small_disk / ".part")
    assert not (small_disk / ".part").exists()


def test_a_disk_that_fills_up_is_told(site: Site, small_disk: Path) -> None:
    """A disk that is full in the midst of a transfer is told, and what has come is kept."""
    site.tells_length = False
    with pytest.raises(DownloadError, match=r"No space left on device: .* needed, 0 free"):
        download(f"{site.base}/weights.pth", small_disk / ".part")
    kept = (small_disk / ".part").read_bytes()
    assert 0 < len(kept) < len(CONTENT)
    assert kept == CONTENT[: len(kept)]


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_limit_on_file_sizes_is_told(site: Site, partial: Path) -> None:
    """A file that may not grow (a quota, a limit) is told as a full disk is."""
    script = textwrap.dedent(f"""
        from pathlib import Path
        from skinjob.errors import DownloadError
        from skinjob.download import Download, download
        try:
            download(Download("{site.base}/weights.pth", Path({str(partial)!r}), "a", "", ""))
        except DownloadError as error:
            print(error.message)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert "File too large: 1,500,000 bytes needed" in done.stdout
    assert partial.read_bytes() == CONTENT[:500_000]


def test_the_bar_counts_what_was_there_before(
    site: Site, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed transfer's bar begins where the earlier one ended, and ends at the file's size."""
    shown: list[int] = []

    @contextlib.contextmanager
    def bar(label: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
        assert (label, total, unit) == ("weights.pth", len(CONTENT), "bytes")
        yield shown.append

    monkeypatch.setattr(module, "progress", bar)
    partial.write_bytes(CONTENT[:700_000])
    download(f"{site.base}/weights.pth", partial)
    assert shown[0] > 700_000
    assert shown[-1] == len(CONTENT)
