"""`report --watch`: loopback, the Host header, ETags, and a sweep that grows."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_sweeps import simulated

from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.report.serve import ReportServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReportServer]:
    made = ReportServer(simulated(tmp_path, trials=4, total=8, finish=False))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ask(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_serves_the_page_and_the_record(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, headers, body = ask(server, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert headers["Cache-Control"] == "no-store"
    assert b'data-live="true"' in body
    status, headers, body = ask(server, "/record.json")
    assert (status, json.loads(body)["name"]) == (200, "big")
    assert ask(server, "/record.json", If_None_Match=headers["ETag"])[::2] == (304, b"")
    assert ask(server, "/", "HEAD")[::2] == (200, b"")


def test_follows_the_ledger(server: ReportServer) -> None:
    first = ask(server, "/record.json")[1]["ETag"]
    ledger = Ledger.open(server.live._paths.root, durable=False)
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    status, headers, body = ask(server, "/record.json", If_None_Match=first)
    assert (status, json.loads(body)["phase"]) == (200, "running")
    ledger.append([Event("sweep_finished", {"trials": 4, "failed": 0, "best": None, "seconds": 1})])
    ledger.close()
    status, _, body = ask(server, "/record.json", If_None_Match=headers["ETag"])
    assert (status, json.loads(body)["phase"]) == (200, "finished")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost.evil:{port}", "", "[::1"]
)
def test_refuses_names_that_are_not_its_own(server: ReportServer, host: str) -> None:
    assert ask(server, "/record.json", Host=host.format(port=server.port))[0] == 403


def test_answers_to_its_own_names(server: ReportServer) -> None:
    for host in ("localhost", "127.0.0.1", "LOCALHOST", "[::1]"):
        assert ask(server, "/record.json", Host=f"{host}:{server.port}")[0] == 200


def test_is_read_only(server: ReportServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0] == 501
    for path in ("/etc/passwd", "/../ledger.sqlite", "/sweep.resolved.json"):
        assert ask(server, path)[0] == 404


def test_a_named_host_takes_addresses_and_its_name_only(tmp_path: Path) -> None:
    server = ReportServer(simulated(tmp_path, trials=4, total=8, finish=False), "0.0.0.0")
    try:
        assert server.answers_to(f"192.168.1.7:{server.port}")
        assert not server.answers_to(f"evil.example:{server.port}")
        assert not server.answers_to(None)
    finally:
        server.server_close()


def test_elsewhere_than_on_loopback_every_request_needs_the_token(tmp_path: Path) -> None:
    server = ReportServer(simulated(tmp_path, trials=4, total=8, finish=False), "0.0.0.0")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        assert server.token in server.url
        for path in ("/", "/record.json", "/elsewhere"):
            for headers in (
                {},
                {"Cookie": f"{server.cookie}=wrong"},
                {"Authorization": "Bearer wrong"},
                {"Cookie": "=;@"},
            ):
                status, _, body = ask(server, path, **headers)
                assert (status, b"big" in body) == (401, False), (path, headers)
            assert ask(server, f"{path}?token=wrong")[0] == 401
            assert ask(server, path, Authorization=f"Bearer {server.token}")[0] in (200, 404)
        status, headers, _ = ask(server, f"/?token={server.token}")
        assert status == 200
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert ask(server, "/record.json", Cookie=cookie.partition(";")[0])[0] == 200
    finally:
        server.shutdown()
        server.server_close()


def test_on_loopback_nothing_is_asked_for(server: ReportServer) -> None:
    status, headers, _ = ask(server, "/")
    assert (status, server.token, "Set-Cookie" in headers) == (200, "", False)


def heed_ctrl_c() -> None:
    """What a script runs in its background ignores SIGINT, and so do the processes that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_ends_with_ctrl_c_and_warns_of_other_hosts(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=4, total=8, finish=False)
    command = [str(Path(sys.executable).with_name("stockpot")), "report", str(paths.root), "--watch"]
    for host, warned in ((None, False), ("0.0.0.0", True)):
        words = command + (["--host", host] if host else [])
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("report of big: http://")
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "ended" in out
        assert ("no encryption" in err) == warned
        assert ("?token=" in line) == warned
