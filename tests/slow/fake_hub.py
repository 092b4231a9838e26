"""A small hub: data sets as folders a commit, over HTTP, with the few answers that `datasets` and `huggingface_hub` ask for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Commits = dict[str, dict[str, bytes]]
"""Commit -> file -> content; the last one is `main`."""


class FakeHub:
    """Data sets by `owner/name`; `asked` keeps every request."""

    def __init__(self) -> None:
        self.repos: dict[str, Commits] = {}
        self.asked: list[str] = []
        self.address = ""

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit and return its SHA."""
        commits = self.repos.setdefault(repo, {})
        sha = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[sha] = files
        return sha

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision means, and its files."""
        commits = self.repos.get(repo, {})
        sha = list(commits)[-1] if revision == "main" and commits else revision
        return (sha, commits[sha]) if sha in commits else None

    @contextmanager
    def serving(self) -> Iterator[FakeHub]:
        """On a port of the loopback, until the end."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(json.loads(body or b"{}"))

    def do_GET(self) -> None:
        self.answer({})

    def answer(self, body: dict[str, object]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        words = path.strip("/").split("/")
        if words[:2] == ["api", "datasets"]:
            self.api("/".join(words[2:4]), words[4:], body)
        elif words[0] == "datasets" and words[3:4] == ["resolve"]:
            self.resolve("/".join(words[1:3]), words[4], "/".join(words[5:]))
        else:
            self.error("EntryNotFound")

    def api(self, repo: str, words: list[str], body: dict[str, object]) -> None:
        verb = words[0] if words else "revision"
        revision = words[1] if len(words) > 1 else "main"
        found = self.hub.find(repo, revision)
        if found is None:
            self.error("RevisionNotFound" if repo in self.hub.repos else "RepoNotFound")
            return
        sha, files = found
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
        if verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.send({"id": repo, "sha": sha, "private": False, "tags": [], "downloads": 0, "siblings": siblings})
        elif verb == "tree":
            inside = "".join(f"{word}/" for word in words[2:])
            self.send([row for row in rows if str(row["path"]).startswith(inside)])
        elif verb == "paths-info":
            wanted = body.get("paths", [])
            self.send([row for row in rows if row["path"] in wanted])  # type: ignore[operator]
        else:
            self.error("EntryNotFound")

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.hub.find(repo, revision)
        if found is None:
            self.error("RevisionNotFound" if repo in self.hub.repos else "RepoNotFound")
        elif name not in found[1]:
            self.error("EntryNotFound", found[0])
        else:
            self.send(found[1][name], found[0])

    def send(self, content: object, sha: str | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if sha else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
        if sha is not None:
            self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def error(self, code: str, sha: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if sha is not None:
            self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()
