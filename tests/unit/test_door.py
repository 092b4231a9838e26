"""Whom a head lets in, and what is said where that is everybody or not us; no Ray runs."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.base import ClusterError
from cluster.door import Door, refuse_door, refuse_versions
from sweeps import cli
from sweeps.commands import remote

OPEN = Door(open=True, admits=True)
SHUT = Door(open=False, admits=False)
OURS = Door(open=False, admits=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_whoever_is_let_in_by_a_token_goes_on() -> None:
    refuse_door("head:6379", OURS, {"RAY_AUTH_TOKEN": "x"}, insecure=False)
    refuse_door("head:6379", OPEN, {}, insecure=True)


@pytest.mark.parametrize(
    ("door", "environment", "insecure", "said"),
    [
        (OPEN, {}, False, "head:6379 lets everybody in: .* or say --insecure"),
        (OPEN, {"RAY_AUTH_TOKEN": "x"}, False, "lets everybody in"),
        (SHUT, {}, False, "asks for a token, and there is none here"),
        (SHUT, {}, True, "asks for a token, and there is none here"),
        (SHUT, {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, False, "asks for a token, and there is none here"),
        (SHUT, {"RAY_AUTH_MODE": "token"}, False, "asks for a token, and there is none here"),
        (SHUT, {"RAY_AUTH_TOKEN": "x"}, True, "does not take the token that is here"),
    ],
)
def test_whom_it_refuses_and_why(door: Door, environment: dict[str, str], insecure: bool, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        refuse_door("head:6379", door, environment, insecure=insecure)


def test_rays_own_token_file_counts_where_ray_reads_it(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    with pytest.raises(ClusterError, match="does not take the token"):
        refuse_door("head:6379", SHUT, {"RAY_AUTH_MODE": "token"}, insecure=False)
    with pytest.raises(ClusterError, match="there is none here"):
        refuse_door("head:6379", SHUT, {}, insecure=False)


def test_another_ray_or_python_is_refused_with_both_named() -> None:
    import platform

    import ray

    here = {"ray": ray.__version__, "python": platform.python_version()}
    refuse_versions("head:6379", replace(OURS, **here))
    refuse_versions("head:6379", OURS)  # it does not say
    for other in ({"ray": "2.59.0"}, {"python": "3.12.4"}):
        there = {**here, **other}
        said = f"head:6379 runs Ray {there['ray']} on Python {there['python']}, and here it is Ray {here['ray']} on Python {here['python']}"
        with pytest.raises(ClusterError, match=re.escape(said)):
            refuse_versions("head:6379", replace(OURS, **there))


@pytest.mark.parametrize("words", [["check", "s.yaml"], ["submit", "s.yaml"], ["resume", "s"], ["soup", "s"]])
def test_insecure_without_a_cluster_is_a_mistake(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--insecure"]) == 2
    assert "--insecure is for a cluster" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--detach"]])
def test_a_ray_client_address_is_refused_with_what_to_say_instead(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Own: ...\n")
    (tmp_path / "s.yaml").write_text(
        'name: s\npipeline: {type: custom, import_path: "mine:Own", total: 2, metrics: {loss: minimize}}\n'
        "parameters: {kwargs.x: [1, 2]}\nmethod: grid\nmetric: loss\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["submit", "s.yaml", "--address", "ray://head:10001", *more]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("stockpot: --address ray://head:10001: a Ray Client connection can't drive a sweep")
    assert "--address auto, or give the head's host:port" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_storage_that_cannot_be_read_here_means_is_said_at_submit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote._warn_unreadable(str(tmp_path), "http://head:8265", "orders")
    assert capsys.readouterr().err == ""
    remote._warn_unreadable("/no/such/mount", "http://head:8265", "orders")
    assert capsys.readouterr().err == (
        "stockpot: /no/such/mount is not on this machine: while that is so, status, logs, show, compare and stop of orders ask "
        "http://head:8265, a short job each time\n"
    )


def test_why_remote_storage_cannot_be_read_here_is_said_at_submit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("s3fs")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "planted-key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    remote._warn_unreadable("s3://bucket/runs", "http://head:8265", "orders")
    told = capsys.readouterr().err
    assert told.startswith("stockpot: s3://bucket/runs can't be read from here (unreachable: ")
    assert "planted-key" not in told
