"""`stockpot report --watch`: the page and its record over HTTP, read-only, on loopback unless a host is named.

A request whose Host header is not an address of this server is refused, so that a web page elsewhere can't read the sweep
by letting its own name point here (DNS rebinding). Where a host is named that is not this machine alone, every request must
have the server's token: in the address that it prints, in the cookie that the page sets, or as `Authorization: Bearer`. The
record is folded anew only when the ledger has grown.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import threading
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sweeps.ledger import LedgerError
from sweeps.paths import SweepPaths
from sweeps.report.page import build_page
from sweeps.report.record import report_record

LOOPBACK = "127.0.0.1"
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


class Live:
    """The newest record, folded again when the ledger or its driver has changed."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._stamp: tuple[Any, ...] | None = None
        self._record: dict[str, Any] = {}

    def record(self) -> dict[str, Any]:
        """What the ledger says now.

        Raises:
            LedgerError: when it can't be read.
        """
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp or not self._record:
                self._record, self._stamp = report_record(self._paths), stamp
            return self._record

    def _look(self) -> tuple[Any, ...]:
        """Sizes and times of the ledger's files, and who drives: cheap, and different after every append."""
        from sweeps.driving import holder_of

        files = (self._paths.ledger, self._paths.ledger.with_name(self._paths.ledger.name + "-wal"))
        found: list[Any] = [holder_of(self._paths, ask=True)]
        for file in files:
            try:
                stat = file.stat()
                found += [stat.st_size, stat.st_mtime_ns]
            except FileNotFoundError:
                found.append(None)
        return tuple(found)


class ReportServer(ThreadingHTTPServer):
    """Serves one sweep. `url` says where, with the token where there is one; `serve_forever` until `shutdown`.

    Args:
        paths: the sweep's.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        OSError: when the port is taken, or the host is none of this machine's.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, paths: SweepPaths, host: str = LOOPBACK, port: int = 0) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Handler)
        self.live = Live(paths)
        self.host = host
        self.token = "" if host in LOCAL else secrets.token_urlsafe(24)

    @property
    def port(self) -> int:
        """The port that it got."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host
        return (
            f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{f'?token={self.token}' if self.token else ''}"
        )

    @property
    def cookie(self) -> str:
        """The name of the token's cookie: browsers keep those of all ports of a host together."""
        return f"stockpot-{self.port}"

    def lets_in(self, path: str, cookies: str, authorization: str) -> bool:
        """Whether a request has the token, in its address, its cookies or its `Authorization`; without a token anybody's."""
        if not self.token:
            return True
        given = parse_qs(urlsplit(path).query).get("token", [])
        try:
            kept = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            kept = None
        given += [kept.value] if kept is not None else []
        given += [authorization.removeprefix("Bearer ")] if authorization.startswith("Bearer ") else []
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given)

    def answers_to(self, header: str | None) -> bool:
        """Whether a Host header means this server.

        On loopback that is its own names with its own port. Where the user named a host, that host, or any plain address:
        a rebinding attack needs a name.
        """
        name, port = _split(header or "")
        if port != self.port and not (port is None and self.port == 80):
            return False
        if name in LOCAL:
            return True
        if self.host in LOCAL:
            return False
        return name == self.host.lower() or name == socket.gethostname().lower() or _is_address(name)


def _split(header: str) -> tuple[str, int | None]:
    """(`name`, port) of a Host header; a port that is no number is -1."""
    text = header.strip().lower()
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    return name, (int(port) if port.isdecimal() and len(port) < 6 else -1) if port else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version = "stockpot"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """The page, the record, or nothing."""
        if not self.server.answers_to(self.headers.get("Host")):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server does not go by that name\n")
            return
        headers = self.headers
        if not self.server.lets_in(self.path, headers.get("Cookie", ""), headers.get("Authorization", "")):
            self._send(
                HTTPStatus.UNAUTHORIZED,
                "text/plain",
                b"open the address that `stockpot report` printed: it has the token\n",
            )
            return
        path = self.path.partition("?")[0]
        try:
            if path == "/":
                page = build_page(self.server.live.record(), live=True)
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())
            elif path == "/record.json":
                self._record()
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /record.json\n")
        except LedgerError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", f"{error}\n".encode())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""

    def _record(self) -> None:
        record = self.server.live.record()
        etag = f'"{record["etag"]}"'
        if self.headers.get("If-None-Match") == etag:
            self._send(HTTPStatus.NOT_MODIFIED, "", b"", etag)
            return
        body = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
        self._send(HTTPStatus.OK, "application/json", body, etag)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, etag: str = "") -> None:
        try:
            self.send_response(status)
            headers = {"Content-Type": kind, "ETag": etag, "Content-Length": "" if status == 304 else str(len(body))}
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            for name, value in _ALWAYS.items():
                self.send_header(name, value)
            if self.server.token and status == HTTPStatus.OK:
                self.send_header(
                    "Set-Cookie", f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
                )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


_ALWAYS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
