"""Clusters that let everybody in are refused unless `--insecure` is given; Ray that is started here lets nobody in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from awaiting import free_port
from open_head import OpenHead, open_head
from test_cluster_up import FILE, environment, stockpot

from cluster.base import ClusterError
from cluster.door import ask_head
from cluster.local import connect
from cluster.nodes import LocalNodes
from cluster.token import make_token

pytestmark = pytest.mark.slow

COMING_IN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('came in')"


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenHead]:
    with open_head(dashboard=True) as head:
        yield head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    (tmp_path / "two.yaml").write_text(FILE)
    return tmp_path


@pytest.mark.parametrize("kind", ["attach", "auto", "jobs", "detached"])
def test_an_open_cluster_is_refused_and_nothing_is_written(opened: OpenHead, folder: Path, kind: str) -> None:
    address = {"auto": "auto", "jobs": f"http://127.0.0.1:{opened.dashboard}"}.get(kind, opened.address)
    words = ["submit", "two.yaml", "--address", address, "--set", f"storage={folder / 'runs'}"]
    words += ["--detach"] if kind == "detached" else []
    # RAY_ADDRESS is how a node of a cluster knows which one is its own, where several run
    env = {**environment(folder), "RAY_ADDRESS": opened.address}
    refused = run(folder, env, words)
    assert refused.returncode == 2, refused.stderr
    assert "lets everybody in" in refused.stderr
    assert "--insecure" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (folder / "runs" / "two").exists()


def test_a_token_of_ones_own_makes_an_open_cluster_no_safer(opened: OpenHead, folder: Path) -> None:
    make_token(folder / "home" / ".stockpot" / "ray-token")
    refused = stockpot(folder, "submit", "two.yaml", "--address", opened.address)
    assert (refused.returncode, "lets everybody in" in refused.stderr) == (2, True)


def test_the_doctor_says_that_it_is_open_and_its_dashboard_too(opened: OpenHead, folder: Path) -> None:
    make_token(folder / "home" / ".stockpot" / "ray-token")
    (folder / "file").touch()
    words = ["cluster", "doctor", "--address", opened.address, "--storage", str(folder / "file"), "--json"]
    told = stockpot(folder, *words)
    assert told.returncode == 1, told.stderr
    found = {one["about"]: (one["state"], one["text"]) for one in json.loads(told.stdout)}
    assert found["token"][0] == "wrong", "a token of ours does not help where none is asked for"
    assert found["dashboard"][0] == "wrong"
    assert f":{opened.dashboard} is open to the world" in found["dashboard"][1]
    assert found["storage"][0] == "wrong"
    assert found["nodes"] == ("ok", "1 of 1 nodes answer")


def test_no_node_of_ours_joins_an_open_cluster(opened: OpenHead, folder: Path) -> None:
    """Whoever reaches its head would run programs here."""
    refused = stockpot(folder, "cluster", "up", "--cpus", "1", "--join", opened.address)
    assert (refused.returncode, "would run programs on this machine too" in refused.stderr) == (2, True)
    assert "starting" not in refused.stdout


@pytest.mark.parametrize("kind", ["attach", "jobs"])
def test_whoever_says_insecure_is_let_in(opened: OpenHead, folder: Path, kind: str) -> None:
    address = f"http://127.0.0.1:{opened.dashboard}" if kind == "jobs" else opened.address
    storage = folder / "runs"
    done = stockpot(
        folder, "submit", "two.yaml", "--address", address, "--insecure", "--set", f"storage={storage}", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert ("is not on this machine: while that is so" in done.stderr) == (kind == "jobs"), (
        "the folder was not there yet"
    )
    shown = stockpot(folder, "show", str(storage / "two"), "--json")
    assert len(json.loads(shown.stdout)["rows"]) == 4


def test_ray_that_is_started_here_lets_in_nobody_without_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    outside = dict(os.environ)
    cluster = connect(None, cpus=1)
    try:
        door = ask_head(cluster.head, outside)
        assert (door.open, door.admits) == (False, False)
        ours = ask_head(cluster.head, os.environ)
        assert (ours.open, ours.admits) == (False, True), "the same question with the token"
        bare = {name: value for name, value in outside.items() if not name.startswith("RAY_")}
        for settings in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            words = [sys.executable, "-c", COMING_IN, cluster.head]
            stranger = subprocess.run(
                words, env={**bare, **settings}, capture_output=True, text=True, timeout=240, check=False
            )
            assert stranger.returncode != 0
            assert "came in" not in stranger.stdout
    finally:
        cluster.close()


def test_what_a_cluster_with_a_token_says_to_whom(folder: Path) -> None:
    nodes = LocalNodes(make_token(folder / "home" / ".stockpot" / "ray-token"), cpus=1, dashboard=free_port())
    nodes.start(1)
    try:
        token = nodes.token.read_text()
        door = ask_head(nodes.address, {**os.environ, "RAY_AUTH_TOKEN": token})
        assert (door.open, door.admits, door.dashboard) == (False, True, f"127.0.0.1:{nodes.dashboard}")
        none = stockpot(folder, "submit", "two.yaml", "--address", nodes.address, home="nobody")
        assert (none.returncode, "asks for a token, and there is none here" in none.stderr) == (2, True)
        env = {**environment(folder, "nobody"), "RAY_AUTH_TOKEN": "0" * 64}
        wrong = run(folder, env, ["submit", "two.yaml", "--address", nodes.address, "--insecure"])
        assert (wrong.returncode, "does not take the token that is here" in wrong.stderr) == (2, True)
        joining = stockpot(folder, "cluster", "up", "--cpus", "1", "--join", nodes.address, home="nobody")
        assert (joining.returncode, "does not take the token in" in joining.stderr) == (2, True)
    finally:
        nodes.close()


def test_a_cluster_of_another_ray_is_refused_with_both_versions(opened: OpenHead, folder: Path) -> None:
    """The head's store says what the cluster was started with; Ray itself compares a driver with that."""
    own = json.loads(kept(opened, "CLUSTER_METADATA"))
    assert own["ray_version"] == ray.__version__
    kept(opened, "CLUSTER_METADATA", json.dumps({**own, "ray_version": "2.59.0"}))
    try:
        words = ["submit", "two.yaml", "--address", opened.address, "--insecure"]
        refused = stockpot(folder, *words)
        told = f"runs Ray 2.59.0 on Python {own['python_version']}, and here it is Ray {ray.__version__} on Python"
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
        assert not (folder / "stockpot-runs" / "two").exists()
        strange = subprocess.run(
            [sys.executable, "-c", COMING_IN, opened.address],
            env={**environment(folder), "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert "Version mismatch" in strange.stderr, "Ray refuses it too, so these are the words that are meant"
    finally:
        kept(opened, "CLUSTER_METADATA", json.dumps(own))


KEPT = """
import sys
from ray._raylet import GcsClient

address, key, *value = (word.encode() for word in sys.argv[1:])
client = GcsClient(address=address.decode())
if value:
    client.internal_kv_put(key, value[0], True, b"cluster")
print(client.internal_kv_get(key, b"cluster").decode())
"""


def kept(head: OpenHead, *words: str) -> str:
    """What the head's store holds under a key, once a second word has been put there."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT, head.address, *words],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


def test_what_is_no_head_is_said_to_be_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterError, match="nothing there answers as Ray's head does"):
            ask_head(address, os.environ)


def run(folder: Path, env: dict[str, str], words: list[str]) -> subprocess.CompletedProcess[str]:
    import killing

    return subprocess.run(
        [killing.STOCKPOT, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
