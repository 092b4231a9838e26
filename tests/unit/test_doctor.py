"""What the doctor says of nodes' answers, and tokens that only their owner can read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.base import ClusterError
from cluster.doctor import Facts, NodeAnswer, dashboard_finding, facts, judge, judge_dashboard, token_finding
from cluster.door import Door
from cluster.token import make_token, read_token, token_settings

OWN = Facts("here", {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}, 1000.0, None)
FINE = NodeAnswer("10.0.0.2", 1.0, replace(OWN, host="there", smi=1), asked=1000.0, lag=0.5)


def said(*answers: NodeAnswer) -> dict[str, tuple[str, str]]:
    return {finding.about: (finding.state, finding.text) for finding in judge(OWN, answers)}


def test_a_sound_cluster_is_said_to_be_one() -> None:
    assert {about: state for about, (state, _) in said(FINE, FINE).items()} == {
        "nodes": "ok",
        "versions": "ok",
        "gpus": "ok",
        "clock": "ok",
    }


def test_each_fault_is_named_with_its_node() -> None:
    assert FINE.said is not None
    other = replace(FINE.said, versions={**OWN.versions, "ray": "2.59.0"})
    state, text = said(FINE, replace(FINE, address="10.0.0.3", said=other))["versions"]
    assert (state, "ray is 2.59.0 on 10.0.0.3, and 2.60.0 here" in text) == ("wrong", True)
    lacking = replace(FINE.said, versions={"python": "3.11.7", "ray": "2.60.0"})
    assert said(replace(FINE, said=lacking))["versions"] == ("warning", "torch is missing on 10.0.0.2")
    older = replace(FINE, address="10.0.0.4", said=replace(FINE.said, versions={**OWN.versions, "torch": "2.12.0"}))
    assert said(FINE, older)["versions"][0] == "wrong"
    assert said(FINE, replace(older, holds_trials=False))["versions"][0] == "ok"
    assert said(replace(FINE, gpus=0.0))["gpus"][0] == "wrong"
    assert said(replace(FINE, gpus=0.0, said=replace(FINE.said, smi=None)))["gpus"][0] == "warning"
    assert said(replace(FINE, said=None, error="no module named cluster"))["nodes"][0] == "wrong"
    late = said(replace(FINE, said=replace(FINE.said, clock=1400.0)))["clock"]
    assert late == ("warning", "10.0.0.2 is 400 s off this machine's; have NTP set both")
    assert (
        said(replace(FINE, said=replace(FINE.said, storage="can't write there (read-only)")))["storage"][0] == "wrong"
    )


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert FINE.said is not None
    slow = replace(FINE, asked=1000.0, lag=30.0, said=replace(FINE.said, clock=1029.0))
    assert said(slow)["clock"][0] == "ok"


def test_a_node_tells_whether_it_sees_and_writes_the_storage(tmp_path: Path) -> None:
    assert "can't see" in facts(str(tmp_path), "probe").storage
    (tmp_path / "probe").touch()
    assert facts(str(tmp_path), "probe").storage == ""
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert facts(str(tmp_path / "runs"), "probe").storage == "can't see what was written there (Not a directory)"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_folder_that_is_mounted_to_be_read_alone_is_said(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    words = ["import sys; from cluster.doctor import facts; print(facts(sys.argv[1], 'probe').storage)", str(tmp_path)]
    mounts = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounts, "sh", str(tmp_path), sys.executable, "-c", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "can't write there (Read-only file system)\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_a_token_is_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        file = make_token(tmp_path / "own" / "ray-token")
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert make_token(file) == file
    assert token_settings({}, file) == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    assert read_token({}, file) == file.read_text()
    assert token_settings({"RAY_AUTH_TOKEN": "x"}, file) == {"RAY_AUTH_MODE": "token"}
    assert token_settings({}, tmp_path / "none") == {}
    file.chmod(0o640)
    for use in (make_token, lambda path: token_settings({}, path)):
        with pytest.raises(ClusterError, match="others can read"):
            use(file)


def test_a_cluster_that_lets_everybody_in_is_wrong_whatever_token_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert token_finding(Door(open=True, admits=True)).state == "wrong"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert token_finding(Door(open=False, admits=True)).state == "ok"


@pytest.mark.parametrize("address", ["", "127.0.0.1:8265", "localhost:8265", "[::1]:8265"])
def test_a_dashboard_on_loopback_or_none_is_well(address: str) -> None:
    assert dashboard_finding(address).state == "ok"


def test_a_dashboard_beyond_loopback_is_judged_by_whom_it_answers() -> None:
    assert judge_dashboard("10.0.0.2:8265", 200).state == "wrong"
    assert "10.0.0.2:8265 is open to the world" in judge_dashboard("10.0.0.2:8265", 200).text
    assert {judge_dashboard("10.0.0.2:8265", status).state for status in (401, 403)} == {"warning"}


def test_a_node_that_cannot_use_the_bucket_is_named() -> None:
    assert FINE.said is not None
    bad = replace(FINE, address="10.0.0.3", said=replace(FINE.said, remote="s3://b: no such bucket (gone)"))
    state, text = said(FINE, bad)["storage"]
    assert state == "warning", "the driver alone uses it"
    assert text.startswith("10.0.0.3: s3://b: no such bucket (gone). ")


def test_a_node_tries_remote_storage_where_it_runs() -> None:
    assert facts(remote=lambda: "denied").remote == "denied"
    assert facts(remote=lambda: "").remote == facts().remote == ""
