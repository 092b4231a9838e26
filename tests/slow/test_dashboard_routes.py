"""What `stockpot cluster up --jobs` serves: on loopback alone, and every route of Ray's own table refuses whoever has no token."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import killing
import pytest
from awaiting import free_port
from test_cluster_up import SECONDS, environment, stockpot

pytestmark = pytest.mark.slow

PUBLIC = {
    "/",
    "/favicon.ico",
    "/api/authentication_mode",
    "/api/authenticate",
    "/api/healthz",
    "/api/gcs_healthz",
    "/api/local_raylet_healthz",
}
"""What Ray answers to everybody: its page, how to bring a token, and whether it lives."""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
ROUTES = """
import json
import ray.dashboard.http_server_agent
import ray.dashboard.http_server_head
from ray.dashboard.optional_utils import DashboardAgentRouteTable, DashboardHeadRouteTable
from ray.dashboard.subprocesses.module import SubprocessModule
from ray.dashboard.subprocesses.routes import SubprocessRouteTable
from ray.dashboard.utils import DashboardAgentModule, DashboardHeadModule, get_all_modules

for kind in (DashboardHeadModule, SubprocessModule, DashboardAgentModule):
    get_all_modules(kind)
tables = {"head": (DashboardHeadRouteTable, SubprocessRouteTable), "agent": (DashboardAgentRouteTable,)}
print(json.dumps({name: [(one.method, one.path) for table in some for one in table.routes()] for name, some in tables.items()}))
"""
AGENT = """
import sys
import time
from ray._raylet import GcsClient

client = GcsClient(address=sys.argv[1])
while not (keys := client.internal_kv_keys(b"DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX:", b"dashboard")):
    time.sleep(0.5)
print(client.internal_kv_get(keys[0], b"dashboard").decode())
"""
"""Where the agent of the only node listens; it comes a moment after its node."""


@dataclass(frozen=True)
class Served:
    """A cluster.

    Attributes:
        address: of its head.
        token: to get in.
        dashboard: its port.
        agent: host and port of the node's own server of jobs.
        routes: of Ray's tables: server -> (method, path).
    """

    address: str
    token: str
    dashboard: int
    agent: tuple[str, int]
    routes: dict[str, list[tuple[str, str]]]

    def place(self, server: str) -> tuple[str, int]:
        return self.agent if server == "agent" else ("127.0.0.1", self.dashboard)

    def answer(self, server: str, method: str, path: str, header: str | None) -> tuple[int, bytes]:
        """Status and body; 0 where it is still being worked on after a while, which only those see who were let in."""
        there = http.client.HTTPConnection(*self.place(server), timeout=20)
        try:
            there.request(method, path, headers={} if header is None else {"Authorization": header})
            answered = there.getresponse()
            return answered.status, answered.read()
        except TimeoutError:
            return 0, b""
        finally:
            there.close()


def python(text: str, *words: str, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text, *words],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    with (folder / "up.log").open("wb") as log:
        raised = subprocess.Popen(
            [killing.STOCKPOT, "cluster", "up", "--cpus", "1", "--jobs", str(port)],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + SECONDS
        while "Ctrl-C ends it" not in (text := (folder / "up.log").read_text()):
            assert raised.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.2)
        file = folder / "home" / ".stockpot" / "ray-token"
        address = re.findall(r"--address (\S+)", text)[0]
        told = python(AGENT, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file))
        host, agent, _ = json.loads(told)
        routes = {name: [(m, p) for m, p in some] for name, some in json.loads(python(ROUTES).splitlines()[-1]).items()}
        yield Served(address, file.read_text(), port, (host, agent), routes)
    finally:
        raised.send_signal(signal.SIGINT)
        raised.wait(SECONDS)


def filled(path: str) -> str:
    """A path with its parts filled in so that there is nothing of that name."""
    return re.sub(r"\{(\w+)\}", lambda part: "0" if part[1] == "delay_s" else "none", path)


def test_the_dashboard_listens_on_loopback_alone(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.dashboard), timeout=10):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((served.agent[0], served.dashboard), timeout=10)


@pytest.mark.parametrize("server", ["head", "agent"])
def test_every_route_refuses_whoever_has_no_token(served: Served, server: str) -> None:
    """Also methods that a route does not have: who is let in is asked before what is asked for."""
    paths = sorted({path for _, path in served.routes[server]} - PUBLIC)
    known = {"head": "/api/jobs/", "agent": "/api/job_agent/jobs/"}[server]
    assert known in paths
    assert len(paths) > {"head": 50, "agent": 3}[server], "these are Ray's tables"
    for path in paths:
        for method in METHODS:
            assert served.answer(server, method, filled(path), None)[0] == 401, (method, path)
            assert served.answer(server, method, filled(path), "Bearer wrong")[0] == 403, (method, path)


@pytest.mark.parametrize("server", ["head", "agent"])
def test_every_route_lets_in_whoever_has_it(served: Served, server: str) -> None:
    for method, path in served.routes[server]:
        status, body = served.answer(server, method, filled(path), f"Bearer {served.token}")
        # Stacks and profiles of workers are refused to everybody (403) unless the cluster was started to give them.
        assert status not in (401, 403) or (status == 403 and b"profil" in body.lower()), (method, path, body)


@pytest.mark.parametrize(
    "path",
    [
        "//api/jobs/",
        "/./api/jobs/",
        "/static/../api/jobs/",
        "/static/%2e%2e/api/jobs/",
        "/static/..%2fapi/jobs/",
        "/api/healthz/../jobs/",
        "/api/jobs/?path=/api/healthz",
        "/API/jobs/",
        "/api/authenticate/../jobs/",
    ],
)
def test_no_way_of_writing_a_path_leads_past_the_token(served: Served, path: str) -> None:
    for method in ("GET", "POST"):
        status, body = served.answer("head", method, path, None)
        assert status in (400, 401, 403, 404, 405), (path, body)


def test_what_is_public_says_nothing_of_the_cluster(served: Served) -> None:
    for _, path in served.routes["head"]:
        if path in PUBLIC - {"/", "/favicon.ico"}:
            _, body = served.answer("head", "GET", path, None)
            assert served.token.encode() not in body
            assert len(body) < 200, (path, body)


def test_the_doctor_finds_its_dashboard(served: Served, tmp_path: Path) -> None:
    env_home = tmp_path / "home" / ".stockpot"
    env_home.mkdir(parents=True, mode=0o700)
    (env_home / "ray-token").write_text(served.token)
    (env_home / "ray-token").chmod(0o600)
    told = stockpot(tmp_path, "cluster", "doctor", "--address", served.address, "--json")
    found = {one["about"]: one for one in json.loads(told.stdout)}
    assert found["token"]["state"] == "ok"
    assert found["dashboard"]["text"] == f"listens on the head's loopback alone (127.0.0.1:{served.dashboard})"
