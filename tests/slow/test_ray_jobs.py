"""`submit --address http://... --detach`: a sweep that runs as a Ray job, asked about from a machine that can't see its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import killing
import pytest
from searching import holding, told
from test_cluster_up import environment, stockpot

from cluster.nodes import LocalNodes
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
resources: {cpus: 1, gpus: 0}
env: {PLANTED: "${PLANTED}"}
"""
PLANTED = "planted-7d1f2c"
"""A secret that the file names; the head has it, the submitting machine has not."""
SECONDS = 600


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a sweep file, and the address of a cluster's jobs; `session` there leads to Ray's own folder."""
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    (folder / "away.yaml").write_text(FILE)
    (folder / "home").mkdir()
    token = make_token(folder / "home" / ".stockpot" / "ray-token")
    nodes = LocalNodes(token, cpus=2, dashboard=free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED", PLANTED)
        nodes.start(1)
    (folder / "session").symlink_to(nodes._nodes[0].folder / "ray")
    try:
        yield folder, f"http://127.0.0.1:{nodes.dashboard}"
    finally:
        nodes.close()


def blind(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as on a machine where the storage is not mounted."""
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(folder / "shared"), killing.STOCKPOT, *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_a_detached_sweep_is_followed_from_where_its_files_are_not_seen(place: tuple[Path, str]) -> None:
    folder, address = place
    shared = folder / "shared"
    shared.mkdir()
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
    assert len(list((shared / ".shipped").iterdir())) == 1, "code and file travelled once"
    twice = stockpot(folder, *words, "--detach")
    assert twice.returncode == 2, "the name is taken, and the cluster says so at once"
    assert "away" in twice.stderr
    again = stockpot(folder, "resume", "away", "--budget", "trials=4", "--json")
    assert "nothing to" in again.stdout + again.stderr, "it is asked of the cluster, which has nothing to do"
    no_secret_is_told(folder, address, [refused, done, twice, again])
    if os.geteuid() == 0:
        shown = blind(folder, "show", "away", "--json")
        assert shown.returncode == 0, shown.stderr
        assert "a short job there" in shown.stderr
        assert len(json.loads(shown.stdout)["rows"]) == 4


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
