"""A small OpenAI-compatible server that answers, refuses, hangs and cuts off as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Trouble = str | int | tuple[int, Mapping[str, str]] | tuple[int, Mapping[str, str], str]
"""What goes wrong with one request: a status (with headers, with a body), or one of
`hang`, `drip`, `cut` (with a length), `half` (without one), `garbage`, `empty`, `null`, `other`."""


def shout(body: Mapping[str, Any]) -> str:
    """The answer: the last message in capitals."""
    return str(body["messages"][-1]["content"]).upper()


class FakeEndpoint:
    """Answers chat completions with `say(body)` and embeddings with lengths.

    Attributes:
        troubles: what goes wrong with the next requests, in order; None for a good answer.
        always: what goes wrong with every request after them.
        key: needed as bearer token where it is set.
        asked: bodies of all requests, in order.
        most: requests in flight at once, at most so far.
    """

    def __init__(self, say: Callable[[Mapping[str, Any]], str] = shout) -> None:
        self.say = say
        self.troubles: list[Trouble | None] = []
        self.always: Trouble | None = None
        self.key: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0
        self.within = 0
        self.hold: threading.Event | None = None
        self.freed = threading.Event()
        self.lock = threading.Lock()
        self.address = ""

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[FakeEndpoint]:
        """On a port of the loopback, until the end."""
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"endpoint": self}))
        server.daemon_threads = True
        self.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield self
        finally:
            self.freed.set()
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    endpoint: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200 if self._allowed() else 401, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        ours = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with ours.lock:
            ours.asked.append({"path": self.path, **body})
            ours.headers.append(dict(self.headers))
            ours.within += 1
            ours.most = max(ours.most, ours.within)
            trouble = ours.troubles.pop(0) if ours.troubles else ours.always
        try:
            if ours.hold is not None:
                ours.hold.wait(10)
            if not self._allowed():
                self._answer(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
            elif trouble is None:
                self._answer(200, self._good(body))
            else:
                self._trouble(trouble, self._good(body))
        finally:
            with ours.lock:
                ours.within -= 1

    def _allowed(self) -> bool:
        return self.endpoint.key is None or self.headers.get("Authorization") == f"Bearer {self.endpoint.key}"

    def _good(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.path.endswith("/embeddings"):
            rows = [{"index": i, "embedding": [float(len(t)), 1.0]} for i, t in enumerate(body["input"])]
            return {"data": rows[::-1], "usage": {"total_tokens": sum(len(t) for t in body["input"])}}
        text = self.endpoint.say(body)
        usage = {"prompt_tokens": 7, "completion_tokens": len(text)}
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}

    def _trouble(self, trouble: Trouble, good: dict[str, Any]) -> None:
        whole = json.dumps(good).encode()
        if isinstance(trouble, int):
            self._answer(trouble, {"error": {"message": "told to"}})
        elif isinstance(trouble, tuple):
            status, headers, *text = trouble
            self._raw(text[0].encode() if text else b"{}", status, headers)
        elif trouble == "hang":
            self.endpoint.freed.wait(10)
        elif trouble == "drip":
            self._drip(whole)
        elif trouble in ("cut", "half"):
            self.close_connection = True
            self.send_response(200)
            self.send_header("Connection", "close")
            if trouble == "cut":
                self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
        else:
            bodies = {
                "garbage": b"<html>busy</html>",
                "empty": b"",
                "null": b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}',
                "other": b'{"choices": []}',
            }
            self._raw(bodies[trouble], 200, {})

    def _drip(self, whole: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        for byte in whole:
            if self.endpoint.freed.wait(0.02):
                return
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                return

    def _answer(self, status: int, body: Any) -> None:
        self._raw(json.dumps(body).encode(), status, {})

    def _raw(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
