"""A real S3 server (moto's, a process of its own) behind a gate of ours that answers badly where it is told to."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECONDS = 120
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
DENIED = (403, ERROR.format(code="AccessDenied", message="Access Denied"))
FULL = (507, ERROR.format(code="InsufficientStorage", message="quota exceeded"))
SLOW_DOWN = (503, ERROR.format(code="SlowDown", message="Please reduce your request rate."))
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailers", "upgrade", "server", "date"}


class Gate(ThreadingHTTPServer):
    """Forwards to the server.

    Attributes:
        refuses: (status, body) of every answer to a write; None lets it through.
        shares: of requests that get a 503, are hung up on, or wait `wait` seconds first.
        served: requests that went through, and that were treated badly.
    """

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind
        self.refuses: tuple[int, str] | None = None
        self.shares = (0.0, 0.0, 0.0)
        self.wait = 0.5
        self.served = [0, 0]
        self.luck = random.Random(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def forward(self) -> None:
        gate = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        drawn, (busy, hang, slow) = gate.luck.random(), gate.shares
        bad = None
        if gate.refuses is not None and self.command in ("PUT", "POST"):
            bad = gate.refuses
        elif drawn < busy:
            bad = SLOW_DOWN
        elif drawn < busy + hang:
            gate.served[1] += 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        elif drawn < busy + hang + slow:
            gate.served[1] += 1
            time.sleep(gate.wait)
        if bad is not None:
            gate.served[1] += 1
            self.answer(bad[0], {"Content-Type": "application/xml"}, bad[1].encode())
            return
        there = http.client.HTTPConnection("127.0.0.1", gate.behind, timeout=SECONDS)
        there.request(self.command, self.path, body, dict(self.headers.items()))
        found = there.getresponse()
        data = found.read()
        gate.served[0] += 1
        self.answer(found.status, {key: value for key, value in found.getheaders() if key.lower() not in HOP}, data)
        there.close()

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        told = {key.lower() for key in headers}
        for key, value in headers.items():
            if key.lower() != "content-length" or self.command == "HEAD":
                self.send_header(key, value)
        if self.command != "HEAD" or "content-length" not in told:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Gate]:
    """The server with its gate, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "moto.log").open("w")
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    gate = Gate(port)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    try:
        await_server(port, server)
        yield gate
    finally:
        gate.shutdown()
        gate.server_close()
        server.kill()
        server.wait()
        log.close()


def await_server(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, "moto's server ended"
        with contextlib.suppress(OSError):
            bucket(port, "GET", "")
            return
        time.sleep(0.1)
    raise AssertionError(f"moto's server did not answer in {SECONDS} s")


def bucket(port: int, verb: str, name: str) -> int:
    """Make (PUT) or remove (DELETE) an empty bucket; the status."""
    there = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    there.request(verb, f"/{name}")
    return there.getresponse().status


def empty_and_remove(gate: Gate, name: str) -> None:
    """What somebody does who deletes a bucket with all that is in it, also while somebody writes there."""
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := files.find(name):
            files.rm(found)
        if bucket(gate.behind, "DELETE", name) in (200, 204):
            return
    raise AssertionError(f"the bucket {name} could not be removed in {SECONDS} s")


def environment(gate: Gate, folder: Path) -> dict[str, str]:
    """What a machine with a home of its own is given to reach it."""
    own = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "planted-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    places = {"HOME": str(folder), "STOCKPOT_WORK": str(folder / "work"), "STOCKPOT_CACHE": str(folder / "cache")}
    return {**os.environ, **own, **places, "AWS_ENDPOINT_URL": gate.url}
