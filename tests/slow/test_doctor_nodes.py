"""`stockpot cluster doctor` where one of two nodes can't write the storage that the other one can."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import killing
import pytest
from bucket_servers import S3, make_bucket, serve
from test_cluster_up import SECONDS, environment, stockpot

from cluster.nodes import LocalNodes
from cluster.token import make_token

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]

READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Place:
    """A cluster whose second node sees `folder/shared` read-only, and has no keys of the bucket.

    Attributes:
        folder: of the test.
        address: of the head.
    """

    folder: Path
    address: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("doctor")
    shared = folder / "shared"
    shared.mkdir()
    with serve(S3, folder) as server, pytest.MonkeyPatch.context() as patch:
        assert make_bucket(server, "runs") == 200
        keyless = {**environment(folder), "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in S3.told(server.url).items():
            patch.setenv(name, value)
        nodes = LocalNodes(make_token(folder / "home" / ".stockpot" / "ray-token"), cpus=1)
        nodes.start(1)
        words = [killing.STOCKPOT, "cluster", "up", "--cpus", "1", "--join", nodes.address]
        with (folder / "up.log").open("wb") as log:
            second = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(shared), *words],
                env=keyless,
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            until = time.monotonic() + SECONDS
            while "joined" not in (text := (folder / "up.log").read_text()):
                assert second.poll() is None, text
                assert time.monotonic() < until, text
                time.sleep(0.2)
            yield Place(folder, nodes.address)
        finally:
            second.terminate()
            second.wait(SECONDS)
            nodes.close()


def examined(place: Place, storage: str) -> tuple[int, dict[str, tuple[str, str]], list[str]]:
    """Exit status, findings that are not about storage, and those about it."""
    told = stockpot(place.folder, "cluster", "doctor", "--address", place.address, "--storage", storage, "--json")
    found = json.loads(told.stdout)
    rest = {one["about"]: (one["state"], one["text"]) for one in found if one["about"] != "storage"}
    return told.returncode, rest, [f"{one['state']} {one['text']}" for one in found if one["about"] == "storage"]


def test_the_node_that_cannot_write_the_folder_is_named(place: Place) -> None:
    status, rest, (storage,) = examined(place, str(place.folder / "shared"))
    assert status == 1
    assert rest["nodes"] == ("ok", "2 of 2 nodes answer")
    host = place.address.rpartition(":")[0]
    assert storage.startswith(f"wrong {host} can't write there (Read-only file system). ")
    assert list((place.folder / "shared").iterdir()) == [], "nothing is left behind"


def test_the_node_that_cannot_use_the_bucket_is_named(place: Place) -> None:
    status, _, storage = examined(place, "s3://runs/sweeps")
    assert status == 0, storage
    warned = [text for text in storage if text.startswith("warning")]
    assert len(warned) == 1
    assert warned[0].count("s3://runs/sweeps") == 1, "the node that has the keys is not named"
    assert "(denied)" in warned[0]
    assert "ok s3://runs/sweeps is read and written by this machine" in storage
