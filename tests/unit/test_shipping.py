"""What travels with a sweep that runs elsewhere, who is let in, and that a name or a text in the file is never the shell's."""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Asked, Errand, Job
from cluster.base import ClusterError
from cluster.jobs import refuse_open
from sweeps import away, shipping
from sweeps.arguments import parser
from sweeps.commands import remote
from sweeps.commands.jobs import as_here
from sweeps.commands.places import UsageError
from sweeps.ledger import Ledger
from sweeps.notes import Note, read_note, write_note
from sweeps.paths import SweepPaths
from sweeps.yaml_source import read

CUSTOM = """\
name: own
pipeline: {type: custom, import_path: "mine:Pipeline", total: 3, kwargs: {table: ../data/table.csv, note: ""}}
parameters: {kwargs.folder: [docs, missing]}
metric: {name: loss, goal: minimize}
storage: runs
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "sweeps/own.yaml": CUSTOM,
        "sweeps/mine.py": "class Pipeline: pass\n",
        "sweeps/more/part.py": "",
        "sweeps/docs/a.md": "A",
        "sweeps/docs/deep/b.md": "B",
        "sweeps/notes.txt": "not named",
        "sweeps/runs/old/ledger.sqlite": "not named",
        "sweeps/__pycache__/mine.pyc": "",
        "data/table.csv": "a,b\n",
        "data/other.csv": "not named",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "sweeps" / "own.yaml"


def staged(file: Path, into: Path) -> tuple[Path, set[str]]:
    place = shipping.stage(file, read(file.read_bytes()).data, into)
    return place, {path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file()}


def test_what_is_named_by_relative_paths_travels_and_keeps_its_place(project: Path, tmp_path: Path) -> None:
    place, names = staged(project, tmp_path / "out")
    assert place == Path("sweeps/own.yaml")
    assert names == {
        "sweeps/own.yaml",
        "sweeps/mine.py",
        "sweeps/more/part.py",
        "sweeps/docs/a.md",
        "sweeps/docs/deep/b.md",
        "data/table.csv",
    }


def test_too_much_is_refused_with_the_largest_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.parent / "docs" / "big.md").write_text("x" * 4000)
    monkeypatch.setattr(shipping, "LARGEST_BYTES", 3000)
    with pytest.raises(UsageError, match=r"big\.md.*absolute paths"):
        staged(project, tmp_path / "out")


def test_what_nobody_meant_to_send_stays_here(project: Path, tmp_path: Path) -> None:
    folder = project.parent
    secret = {
        ".env": "K=1",
        "docs/.env": "K=1",
        "docs/.git/config": "x",
        ".shipped/0123/mine.py": "x",
        "custom/notes.txt": "x",
        "loss/key.txt": "x",
        "grid/key.txt": "x",
    }
    for name, text in secret.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    text = project.read_text()
    project.write_text(text + "metric: loss\nmethod: grid\nenv: {TOKEN: .env}\njudge: {stop: ['*', '?', '**']}\n")
    _, names = staged(project, tmp_path / "out")
    assert not {f"sweeps/{name}" for name in secret} & names
    assert "sweeps/docs/a.md" in names


def test_a_link_in_a_folder_is_refused_and_one_that_is_named_is_followed(project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "package").mkdir(parents=True)
    for name in ("package/__init__.py", "package/helper.py", "vast.py"):
        (outside / name).write_text("A = 1\n")
    (outside / "table.csv").write_text("c,d\n")
    (project.parent / "linked").symlink_to(outside / "package")
    (project.parent / "data").symlink_to(outside)
    (project.parent / "again").symlink_to(project.parent)
    (project.parent.parent / "data" / "table.csv").unlink()
    (project.parent.parent / "data" / "table.csv").symlink_to(outside / "table.csv")
    _, names = staged(project, tmp_path / "out")
    assert {"sweeps/linked/helper.py", "data/table.csv"} <= names
    assert (tmp_path / "out" / "data" / "table.csv").read_text() == "c,d\n"
    assert not any("again" in name or "vast" in name for name in names)
    (project.parent / "docs" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match=r"docs/passwd is a link.*absolute path"):
        staged(project, tmp_path / "more")


def test_odd_names_travel_or_are_refused(project: Path, tmp_path: Path) -> None:
    docs = project.parent / "docs"
    (docs / "two words\nand ä.md").write_text("x")
    (docs / ".gitignore").write_text("*\n")
    assert "sweeps/docs/two words\nand ä.md" in staged(project, tmp_path / "out")[1]
    for name in (b"back\\slash.md", b"latin-\xe4.md"):
        path = Path(os.fsdecode(bytes(docs) + b"/" + name))
        path.write_text("x")
        with pytest.raises(UsageError, match="can't travel; rename it"):
            staged(project, tmp_path / repr(name))
        path.unlink()


def test_a_hash_stands_for_names_and_contents(tmp_path: Path) -> None:
    for name, text in {"a/x": "1", "b/x": "1", "c/y": "1", "d/x": "2"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    hashes = [shipping.tree_hash(tmp_path / name) for name in "abcd"]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_job_places_its_files_once(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "own.yaml").write_text("x")
    first = away.place(tmp_path / "job", tmp_path / "storage")
    (first / "mark").touch()
    (tmp_path / "job" / "__pycache__").mkdir()
    (tmp_path / "job" / "__pycache__" / "own.pyc").write_text("a job before this one, of the same files, ran them")
    assert away.place(tmp_path / "job", tmp_path / "storage") == first
    assert (first / "mark").exists()
    assert [path.name for path in (tmp_path / "storage" / away.SHIPPED).iterdir()] == [first.name]


def test_other_versions_are_named_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(away.VERSIONS, json.dumps({**away.versions(), "ray": "9.9"}))
    for words in (["ask", "--sweep", "x"], ["follow", "--sweep", "x"], ["run"]):
        assert away.main([*words, "--", "list"]) == 2
        told = capsys.readouterr().err
        assert f"ray is {away.versions()['ray']} on the cluster and 9.9 where the command was given" in told


def test_a_command_that_runs_on_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(away.VERSIONS, json.dumps(away.versions()))
    assert away.main(["run", "--", "status", "no such sweep", "--watch"]) == 2
    assert capsys.readouterr().err.startswith("stockpot: there is no sweep")


def test_an_answer_comes_back_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(away.VERSIONS, json.dumps(away.versions()))
    sweep = str(tmp_path / "own")
    words = ["ask", "--sweep", sweep, "--", "logs", sweep, "0007"]
    assert away.main(words) == 0
    assert away.read_answer(capsys.readouterr().out) == (away.NOT_BEGUN, "", "")
    Ledger.create(tmp_path / "own").close()
    assert away.main(words) == 0
    found = away.read_answer("2026 INFO something\n" + capsys.readouterr().out + "more\n")
    assert found is not None
    assert (found[0], found[1], "0007" in found[2]) == (2, "", True)
    assert away.read_answer("nothing here") is None


def test_a_command_that_follows_is_run_where_there_is_a_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(away.VERSIONS, json.dumps(away.versions()))
    words = ["follow", "--sweep", str(tmp_path / "own"), "--", "logs", str(tmp_path / "own"), "-f"]
    assert away.main(words) == away.NOT_BEGUN
    assert capsys.readouterr() == ("", "")
    Ledger.create(tmp_path / "own").close()
    assert away.main(words) == 0


def test_notes_are_read_back_and_names_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    note = Note("own", "http://h:1", "/s", "job-1")
    write_note(note)
    assert read_note("own") == note
    (tmp_path / "evil.json").write_text('{"name": "x", "address": "http://e:1", "storage": "/", "job": "j"}')
    for name in ("../../evil", "", ".", "other"):
        assert read_note(name) is None


class _Dashboard(BaseHTTPRequestHandler):
    token: str | None = None

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        wanted = None if self.token is None else f"Bearer {self.token}"
        status = 200 if wanted is None or given == wanted else (401 if given is None else 403)
        body = json.dumps({"ray_version": "2.60.0"}).encode() if status == 200 else b""
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(params=["open", "closed"])
def dashboard(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    handler = type("Own", (_Dashboard,), {"token": None if request.param == "open" else "right"})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield request.param, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_cluster_that_lets_everybody_in_is_refused(dashboard: tuple[str, str]) -> None:
    kind, address = dashboard
    if kind == "open":
        with pytest.raises(ClusterError, match="lets everybody in"):
            refuse_open(address, "right", insecure=False)
        refuse_open(address, None, insecure=True)
        return
    refuse_open(address, "right", insecure=False)
    with pytest.raises(ClusterError, match="does not take the token"):
        refuse_open(address, "wrong", insecure=False)
    with pytest.raises(ClusterError, match="asks for a token"):
        refuse_open(address, None, insecure=False)


class Jobs(Asked):
    """A cluster whose jobs of sweeps are as they are, and whose other jobs say that there is no such sweep."""

    place, inside = "http://head:1", "auto"
    seconds = 0.0

    def submit(self, errand: Errand) -> Job:
        raise AssertionError

    def status(self, job: str) -> Job:
        return Job(job, job)  # type: ignore[arg-type]

    def logs(self, job: str) -> str:
        return f"job {job}"

    def cancel(self, job: str) -> None:
        raise AssertionError

    def ask(self, errand: Errand, near: str, seconds: float) -> str:
        self.seconds = seconds
        told = {"status": away.NOT_BEGUN, "out": "", "errors": ""}
        return away.MARK + base64.b64encode(json.dumps(told).encode()).decode()

    def attend(self, errand: Errand, near: str, say: Callable[[str], None]) -> int:
        return away.NOT_BEGUN


def test_a_sweep_that_is_not_there_yet_is_told_from_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: Jobs())
    arguments = argparse.Namespace(insecure=False, command="status")
    assert remote.ask(Note("det", "http://head:1", "/there", "running"), arguments, ["status", "det"]) == 0
    assert capsys.readouterr().out == "det: not begun\n  job      running on http://head:1 runs\n"
    asked = argparse.Namespace(**vars(arguments), json=True)
    assert remote.ask(Note("det", "http://head:1", "/there", "running"), asked, ["status", "det", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["job"]["state"], told["trials"]["finished"]) == ("not begun", "running", 0)
    with pytest.raises(UsageError, match=r"det never began: its job failed .* failed: job failed"):
        remote.ask(Note("det", "http://head:1", "/there", "failed"), arguments, ["status", "det"])
    with pytest.raises(UsageError, match="there is no sweep 'det' in /there any more"):
        remote.ask(Note("det", "http://head:1", "/there", "succeeded"), arguments, ["status", "det"])


@pytest.mark.parametrize("words", ["status det --watch", "logs det -f"])
def test_a_sweep_that_is_not_there_yet_can_be_followed_once_it_is(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: Jobs())
    arguments = parser().parse_args(words.split())
    assert remote.ask(Note("det", "http://head:1", "/there", "running"), arguments, words.split()) == 0
    assert capsys.readouterr().out.startswith("det: not begun\n  job      running on http://head:1 runs\n")
    with pytest.raises(UsageError, match=r"det never began: its job failed"):
        remote.ask(Note("det", "http://head:1", "/there", "failed"), arguments, words.split())
    with pytest.raises(UsageError, match="there is no sweep 'det' in /there any more"):
        remote.ask(Note("det", "http://head:1", "/there", "succeeded"), arguments, words.split())


def test_a_stop_is_waited_for_as_long_as_it_was_asked_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Jobs()
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: there)
    words = ["stop", "det", "--timeout", "900"]
    with pytest.raises(UsageError, match="any more"):
        remote.ask(Note("det", "http://head:1", "/there", "succeeded"), parser().parse_args(words), words)
    assert there.seconds > 900


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("go on with: stockpot resume /s/det --address auto\n", "go on with: stockpot resume det\n"),
        ("(`stockpot status /s/det`)", "(`stockpot status det`)"),
        ("stockpot resume /s/det --address auto --insecure", "stockpot resume det --insecure"),
        ("stockpot logs /s/det 0000-x", "stockpot logs det 0000-x"),
        ("stockpot status /s/det-2", "stockpot status /s/det-2"),
        ("folder: /s/det", "folder: /s/det"),
    ],
)
def test_what_was_printed_there_names_commands_for_here(there: str, here: str) -> None:
    assert as_here(Note("det", "http://h:1", "/s", "j"), there) == here
    assert as_here(Note("det", "host:6379", "/s", "j"), there) == there


@pytest.mark.parametrize("former", [None, Note("det", "http://old:1", "/old", "running")])
def test_a_resume_that_is_refused_leaves_the_job_that_drives_the_sweep(
    former: Note | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if former is not None:
        write_note(former)
    there = Jobs()
    monkeypatch.setattr(there, "submit", lambda errand: Job("failed", "waiting"))
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: there)
    note = Note("det", "http://h:1", "/s", "")
    with pytest.raises(UsageError, match="did not start it"):
        remote.resume(parser().parse_args(["resume", "det", "--detach"]), note)
    assert read_note("det") == former


@pytest.mark.parametrize(("former", "kept"), [("running", "running"), ("failed", "refused")])
def test_a_submit_that_is_refused_leaves_the_sweep_that_has_its_name(
    former: str, kept: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: Jobs())
    write_note(Note("det", "http://old:1", "/old", former))
    refuses = Jobs()
    monkeypatch.setattr(refuses, "status", lambda job: Job(job, "failed"))
    with pytest.raises(UsageError, match="did not start it"):
        remote._noted(Note("det", "http://h:1", "/s", "refused"), refuses, SweepPaths.of("/s", "det"), insecure=False)
    found = read_note("det")
    assert found is not None
    assert found.job == kept


class Here(Jobs):
    """A cluster that is this machine: runs what it is given, and tells what came of it."""

    def __init__(self) -> None:
        self.told, self.failed = "", False

    def run(self, errand: Errand) -> int:
        words = [sys.executable, *errand.words[1:]]
        done = subprocess.run(
            words, env={**os.environ, **errand.environment}, capture_output=True, text=True, timeout=120, check=False
        )
        self.told = done.stdout + done.stderr
        return done.returncode

    def ask(self, errand: Errand, near: str, seconds: float) -> str:
        self.run(errand)
        return self.told

    def attend(self, errand: Errand, near: str, say: Callable[[str], None]) -> int:
        return self.run(errand)

    def submit(self, errand: Errand) -> Job:
        self.failed = bool(self.run(errand))
        return self.status(errand.name)

    def status(self, job: str) -> Job:
        return Job(job, "failed" if self.failed else "succeeded")

    def logs(self, job: str) -> str:
        return self.told


@pytest.mark.parametrize("flags", [[], ["--insecure"]])
def test_the_driver_of_a_resumed_job_joins_the_cluster_that_the_command_was_let_into(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Errand] = []
    there = Here()
    monkeypatch.setattr(there, "submit", lambda errand: seen.append(errand) or Job(errand.name, "succeeded"))
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: there)
    remote.resume(parser().parse_args(["resume", "det", "--detach", *flags]), Note("det", "http://h:1", "/s", "old"))
    (errand,) = seen
    at = errand.words.index("--address")
    assert list(errand.words[at:]) == ["--address", "auto", *flags]


@pytest.mark.parametrize("command", ["status", "logs -f", "status --watch", "resume"])
def test_every_command_that_runs_on_the_cluster_compares_versions_there(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    there = Here()
    monkeypatch.setattr(remote, "noted_backend", lambda note, insecure: there)
    monkeypatch.setattr(remote, "versions", lambda: {**away.versions(), "ray": "9.9"})
    note = Note("det", "http://head:1", str(tmp_path), "running")
    words = [*command.split(), "det"]
    arguments = parser().parse_args(words)
    if command == "resume":
        with pytest.raises(UsageError, match=r"9\.9 where the command was given"):
            remote.resume(arguments, note)
    elif "-" in command:
        assert remote.ask(note, arguments, words) == 2
    else:
        with pytest.raises(UsageError, match=r"9\.9 where the command was given"):
            remote.ask(note, arguments, words)
    assert "9.9 where the command was given" in there.told
