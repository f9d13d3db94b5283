"""A web server and a forward proxy on 127.0.0.1 that misbehave on request."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LOGIN_PAGE = b"<!DOCTYPE html><html><body>Welcome to Hotel WiFi</body></html>"


@dataclass
class Site:
    """What the server has and how it behaves; it records its requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes after which each transfer breaks
    knows_ranges: bool = True
    tells_length: bool = True
    etag: str = ""
    status: int = 0  # the answer to every request, if not 0
    content_type: str = "application/octet-stream"
    redirects: dict[str, str] = field(default_factory=dict)
    hold_after: int | None = None  # sends this many bytes, then waits for `go_on`
    go_on: threading.Event = field(default_factory=threading.Event)
    headers: list[dict[str, str]] = field(default_factory=list)  # of each request, in order
    proxied: list[str] = field(default_factory=list)  # addresses that a proxy was asked for
    base: str = ""  # http://127.0.0.1:PORT

    @property
    def ranges(self) -> list[str]:
        return [request.get("Range", "") for request in self.headers]


@contextlib.contextmanager
def serving(site: Site, *, as_proxy: bool = False) -> Iterator[Site]:
    """Serves *site* while the block runs; as a proxy it forwards any host's path to *site.base*."""

    class Bound(_ForwardProxy if as_proxy else _Server):  # type: ignore[misc]
        pass

    Bound.site = site
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}"
    if not as_proxy:
        site.base = address
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site if not as_proxy else Site(base=address)
    finally:
        site.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.headers.append(dict(self.headers))
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            self.end_headers()
        elif site.status:
            self.send_error(site.status)
        elif self.path not in site.files:
            self.send_error(404)
        else:
            self._send_file(site.files[self.path])

    def _send_file(self, content: bytes) -> None:
        site = self.site
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range", site.etag) == site.etag
        start = int(asked[1]) if asked and site.knows_ranges and current else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", site.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.tells_length:
            self.send_header("Content-Length", str(len(content) - start))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self._send_body(content[start:])

    def _send_body(self, body: bytes) -> None:
        site = self.site
        if site.cuts:
            body = body[: site.cuts.pop(0)]
        with contextlib.suppress(ConnectionError):
            if site.hold_after is not None:
                self.wfile.write(body[: site.hold_after])
                self.wfile.flush()
                body = body[site.hold_after :]
                site.go_on.wait()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _ForwardProxy(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        self.site.proxied.append(self.path)
        origin = http.client.HTTPConnection(self.site.base.removeprefix("http://"))
        origin.request("GET", urlsplit(self.path).path)
        answer = origin.getresponse()
        body = answer.read()
        origin.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
