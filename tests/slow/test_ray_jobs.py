"""A sweep on a cluster whose nodes have no Stockpot: as a Ray job, asked about from where its files are not seen, and attached."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import killing
import pytest
import waiting_sweep
from awaiting import await_that, free_port
from searching import holding, told
from test_cluster_up import environment, stockpot

from cluster.nodes import LocalNodes
from cluster.packages import NAMES
from cluster.token import make_token
from sweeps.paths import SweepPaths
from sweeps.secret_values import MASK

pytestmark = pytest.mark.slow

FILE = """\
name: away
pipeline: {type: custom, import_path: "toy_pipeline:Toy", total: 4, metrics: {loss: minimize}, kwargs: {x: 0, say: hello, reveal: PLANTED, reveal_at: 4}}
parameters: {kwargs.x: [0, 1, 2, 4]}
method: grid
metric: loss
budget: {trials: 3}
resources: {cpus: 1, gpus: 0}
env: {PLANTED: "${PLANTED}"}
"""
PLANTED = "planted-7d1f2c"
"""A secret that the file names; the head has it, the submitting machine has not."""
SECONDS = 600
ALONE = ("unshare", "--user", "--map-root-user", "--mount")
"""Begins a command that has mounts of its own; root is not needed where the kernel lets users have them."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodes]:
    """A cluster of one node, where nothing of Stockpot can be imported."""
    folder = tmp_path_factory.mktemp("jobs")
    token = make_token(folder / "home" / ".stockpot" / "ray-token")
    for name in NAMES:
        (folder / "none" / name).mkdir(parents=True)
        (folder / "none" / name / "__init__.py").write_text("raise ImportError('this node has no Stockpot')\n")
    nodes = LocalNodes(token, cpus=2, dashboard=free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED", PLANTED)
        patch.setenv("PYTHONPATH", str(folder / "none"))
        nodes.start(1)
    (folder / "session").symlink_to(nodes._nodes[0].folder / "ray")
    try:
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="module")
def place(nodes: LocalNodes) -> tuple[Path, str]:
    """A folder with a sweep file, and the address of a cluster's jobs; `session` there leads to Ray's own folder."""
    folder = nodes.token.parents[2]
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    (folder / "away.yaml").write_text(FILE)
    (folder / "shared").mkdir()
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "__init__.py").write_text("raise ImportError('a folder of the user')\n")
    return folder, f"http://127.0.0.1:{nodes.dashboard}"


class Gate(BaseHTTPRequestHandler):
    """Hands requests on to a cluster's jobs and writes down which packages are sent."""

    address = ""
    sent: list[str]

    def do_GET(self) -> None:
        behind = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        behind.request(self.command, self.path, body, {**self.headers, "Host": urlsplit(self.address).netloc})
        answer = behind.getresponse()
        told = answer.read()
        if self.command == "PUT":
            self.sent.append(self.path)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gate(place: tuple[Path, str]) -> Iterator[tuple[str, list[str]]]:
    """Another address of the cluster's jobs, and the packages that were sent through it."""
    sent: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Gate,), {"address": place[1], "sent": sent})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
        server.shutdown()


def test_a_detached_sweep_travels_once_and_tells_no_secret(
    place: tuple[Path, str], gate: tuple[str, list[str]]
) -> None:
    (folder, _), (address, sent) = place, gate
    shared = folder / "shared"
    refused = stockpot(folder, "submit", "away.yaml", "--address", address, "--detach")
    assert (refused.returncode, "absolute folder" in refused.stderr) == (2, True)
    words = ["submit", "away.yaml", "--address", address, "--set", f"storage={shared}"]
    done = stockpot(folder, *words, "--detach", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["folder"]) == ("away", str(shared / "away"))
    until = time.monotonic() + SECONDS
    while "sweep_finished" not in {event.kind for event in killing.read(SweepPaths(shared / "away"))}:
        assert time.monotonic() < until, stockpot(folder, "status", "away")
        time.sleep(0.5)
    assert "finished" in stockpot(folder, "status", "away").stdout, "the storage is seen here, by the name alone"
    assert len(set(sent)) == len(sent) == len(NAMES) + 2, "our packages, their version, and the file with its module"
    sent.clear()
    twice = stockpot(folder, *words, "--detach")
    assert twice.returncode == 2, "the name is taken, and the cluster says so at once"
    assert "away" in twice.stderr
    assert sent == [], "what is there already does not travel again"
    module = folder / "toy_pipeline.py"
    module.write_text(module.read_text().replace("toy {task.trial}", "changed toy {task.trial}"))
    other = stockpot(folder, *words, "--set", "name=other", "--set", "budget.trials=1")
    assert other.returncode == 0, other.stdout + other.stderr
    assert len(sent) == 1, "the file with its changed module"
    assert len(list((shared / ".shipped").iterdir())) == 2
    again = stockpot(folder, "resume", "away", "--budget", "trials=4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(sent) == 1
    for name, trials, changed in (("away", 4, False), ("other", 1, True)):
        logs = [path.read_text() for path in (shared / name / "logs").glob("0*.log")]
        assert [("toy 0" in log, "changed toy 0" in log) for log in logs] == [(True, changed)] * trials
    no_secret_is_told(folder, address, [refused, done, twice, other, again])


def no_secret_is_told(folder: Path, address: str, said: list[subprocess.CompletedProcess[str]]) -> None:
    """Neither by what the sweep wrote, nor by what Ray tells and keeps of the jobs, of a secret that a trial's error held."""
    paths = SweepPaths(folder / "shared" / "away")
    assert f"the server says: no Bearer {MASK}" in told(paths)
    assert PLANTED not in told(paths)
    said += [stockpot(folder, "status", "away", "--json"), stockpot(folder, "show", "away", "--json")]
    said += [stockpot(folder, "logs", "away")]
    assert f"no Bearer {MASK}" in said[-1].stdout
    assert PLANTED not in "".join(one.stdout + one.stderr for one in said)
    jobs = json.loads(answer_of(folder, f"{address}/api/jobs/"))
    assert "sweeps.away" in str(jobs), "these are the jobs"
    names = [job["submission_id"] for job in jobs if job["submission_id"]]
    routes = [f"/api/jobs/{name}{more}" for name in names for more in ("", "/logs")]
    routes += [
        "/api/jobs/",
        "/logical/actors",
        "/nodes?view=summary",
        "/api/v0/tasks?detail=1",
        "/api/v0/actors?detail=1",
    ]
    routes += ["/api/v0/workers?detail=1", "/api/v0/runtime_envs?detail=1"]
    for route in routes:
        assert PLANTED not in answer_of(folder, address + route), route
    assert holding("raylet", [(folder / "session").resolve()]), "these are Ray's own logs"
    assert holding(PLANTED, [folder, (folder / "session").resolve()]) == []


def answer_of(folder: Path, url: str) -> str:
    token = (folder / "home" / ".stockpot" / "ray-token").read_text()
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return str(answer.read().decode())


def test_nobody_gets_in_without_the_token(place: tuple[Path, str]) -> None:
    folder, address = place
    stranger = stockpot(folder, "submit", "away.yaml", "--address", address, "--set", "storage=/s", home="nobody")
    assert (stranger.returncode, "asks for a token" in stranger.stderr) == (2, True)
    token = (folder / "home" / ".stockpot" / "ray-token").read_text()
    routes = (
        "/api/version",
        "/api/jobs/",
        "/api/cluster_status",
        "/nodes?view=summary",
        "/logical/actors",
        "/api/v0/tasks",
    )
    for route in routes:
        answers = [status(address + route, header) for header in (None, "Bearer wrong", f"Bearer {token}")]
        assert answers[:2] == [401, 403], route
        assert answers[2] == 200, route


def status(url: str, header: str | None) -> int:
    asked = urllib.request.Request(url, headers={} if header is None else {"Authorization": header})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def fake(folder: Path, package: str, version: str) -> str:
    """A folder that says, first on Python's path, that a package has another version."""
    told = folder / f"{package}-{version}" / f"{package}-{version}.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(told.parent)


def test_an_attached_driver_brings_its_code_and_refuses_what_trials_could_not_be_compared_on(
    nodes: LocalNodes, place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = place
    monkeypatch.chdir(folder)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([fake(folder, "trl", "0.0.1"), *filter(None, [before])]))
    words = ["submit", "away.yaml", "--address", nodes.address]
    done = stockpot(folder, *words, "--set", "name=near", "--set", "budget.trials=1", "--json")
    assert done.returncode == 0, done.stderr
    differs = next(line for line in done.stderr.splitlines() if "trl is " in line)
    started = next(
        event for event in killing.read(SweepPaths(folder / "stockpot-runs" / "near")) if event.kind == "driver_started"
    )
    assert started.body["differences"]
    assert started.body["differences"][0] in differs
    assert "0.0.1 where this driver does" in differs
    packages = kept(nodes)
    again = ["--set", "name=again", "--set", "budget.trials=1", "--set", "pipeline.kwargs.wait_at=1"]
    again += ["--set", f"pipeline.kwargs.wait_for={folder / 'go'}"]
    with (folder / "again.log").open("wb") as log:
        holding_on = subprocess.Popen(
            [killing.STOCKPOT, *words, *again], cwd=folder, env=environment(folder), stdout=log, stderr=log
        )
    until = time.monotonic() + SECONDS
    while not list(folder.glob("stockpot-runs/again/logs/0*")):
        assert holding_on.poll() is None, (folder / "again.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.5)
    more = LocalNodes(nodes.token, cpus=1, join=nodes.address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([fake(folder, "torch", "2.0.0"), str(folder / "none")]))
        patch.setenv("PLANTED", PLANTED)
        more.start(1)
    try:
        while "torch is 2.0.0 on " not in (folder / "again.log").read_text():
            assert time.monotonic() < until, (folder / "again.log").read_text()
            time.sleep(0.5)
        (folder / "go").touch()
        assert holding_on.wait(SECONDS) == 0, "a node that joins later is told of"
        assert kept(nodes) == packages
        refused = stockpot(folder, *words, "--set", "name=no")
        assert refused.returncode == 2, refused.stdout
        assert "torch is 2.0.0 on " in refused.stderr
        assert f" and {version('torch')} on " in refused.stderr
        assert "trials there could not be compared" in refused.stderr
        assert not (folder / "stockpot-runs" / "no").exists()
        found = stockpot(folder, "cluster", "doctor", "--address", nodes.address, "--json")
        told = {one["about"]: one for one in json.loads(found.stdout)}["versions"]
        assert (told["state"], "torch is 2.0.0 on " in told["text"]) == ("wrong", True)
    finally:
        holding_on.kill()
        holding_on.wait()
        more.close()


def kept(nodes: LocalNodes) -> set[str]:
    """The packages that the head keeps."""
    script = (
        "import sys; from cluster.local import connect; cluster = connect(sys.argv[1])\n"
        "from ray.experimental.internal_kv import _internal_kv_list\n"
        "print(*_internal_kv_list('gcs://')); cluster.close()"
    )
    words = [sys.executable, "-P", "-c", script, nodes.address]
    home = str(nodes.token.parents[1])
    done = subprocess.run(words, env={**os.environ, "HOME": home}, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class Laptop:
    """Commands where the storage is mounted, or `blind` where it is not: there, in a mount namespace that needs no root.

    Args:
        folder: the user's.
        blind: whether the storage is out of sight.
    """

    def __init__(self, folder: Path, blind: bool) -> None:
        self.folder, self.blind = folder, blind
        unmounted = [*ALONE, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder / "shared")]
        self._words = [*(unmounted if blind else ()), killing.STOCKPOT]

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        return subprocess.Popen(
            [*self._words, *words],
            cwd=self.folder,
            env=environment(self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, status: int = 0) -> tuple[str, str]:
        """Output and errors of a command that ends as expected."""
        return self.end(self.begin(*words), status)

    def end(self, begun: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
        """What a command that was begun has said, once it has ended as expected."""
        try:
            out, errors = begun.communicate(timeout=SECONDS)
        finally:
            begun.kill()
        assert begun.returncode == status, (begun.args, out, errors)
        return out, errors

    def state(self, name: str) -> dict[str, Any]:
        """What `status --json` says, also before the sweep begins."""
        found: dict[str, Any] = json.loads(self.run("status", name, "--json")[0])
        return found


@pytest.fixture(scope="module")
def waiting(place: tuple[Path, str]) -> Iterator[str]:
    """The name of a sweep on the cluster, submitted from here, two of whose trials have finished while two wait."""
    folder, address = place
    here = Laptop(folder, blind=False)
    waiting_sweep.write(folder, folder / "never", f"storage: {folder / 'shared'}\n")
    here.run("submit", "two.yaml", "--address", address, "--detach")
    await_that(lambda: here.state("two")["trials"]["finished"] == 2, SECONDS)
    yield "two"
    here.run("stop", "two", "--grace", "0")


@pytest.mark.parametrize("blind", [False, True], ids=["storage seen", "storage not seen"])
def test_a_sweep_is_looked_after_by_its_name(waiting: str, place: tuple[Path, str], blind: bool) -> None:
    (folder, address), name = place, waiting
    hides = [*ALONE, "mount", "-t", "tmpfs", "none", str(folder)]
    if blind and (shutil.which(ALONE[0]) is None or subprocess.run(hides, check=False).returncode):
        pytest.skip("users of this machine can't have mounts of their own, which hide a folder from one command")
    laptop, note = Laptop(folder, blind), folder / "home" / ".stockpot" / "detached" / f"{name}.json"
    shot, job = laptop.state(name), json.loads(note.read_text())["job"]
    assert (shot["state"], shot["trials"]["running"]) == ("running", 2)
    watching = laptop.begin("status", name, "--watch", "--json", "--interval", "0.5")
    following, left = (laptop.begin("logs", name, "1", "-f") for _ in range(2))

    assert f"sweep {name} is driven by pid" in laptop.run("resume", name, "--detach", status=2)[1]
    printed = laptop.run("logs", name, "--job", "-n", "99")[0]
    assert printed.startswith(f"sweep {name} in {folder / 'shared' / name}\n"), "its own job's, and nothing of Ray's"
    assert "2 trials at a time" in printed
    shown, errors = laptop.run("show", name, "--json")
    assert len(json.loads(shown)["rows"]) == 4
    assert ("a short job there" in errors) is blind

    left.send_signal(signal.SIGINT)
    laptop.end(left, 130)
    out, _ = laptop.run("stop", name, "--grace", "1")
    assert out.splitlines()[-1] == f"stopped; go on with: stockpot resume {name}", "a command for here"
    shots = [json.loads(line) for line in laptop.end(watching)[0].splitlines()]
    assert [shots[at]["state"] for at in (0, -1)] == ["running", "stopped"]
    assert "toy 0001-" in laptop.end(following)[0]
    asked = asking(folder, address, name)
    assert (len(asked) > 5) is blind
    assert "RUNNING" not in asked, "no command goes on there that nobody reads"

    again = json.loads(laptop.run("resume", name, "--detach", "--json")[0])
    assert again["job"] == json.loads(note.read_text())["job"] != job
    await_that(lambda: laptop.state(name)["trials"]["running"] == 2, SECONDS)


def asking(folder: Path, address: str, name: str) -> list[str]:
    """How the jobs are that answer commands about a sweep."""
    jobs = json.loads(answer_of(folder, f"{address}/api/jobs/"))
    return [job["status"] for job in jobs if (job["submission_id"] or "").startswith(f"stockpot-{name}-ask-")]
