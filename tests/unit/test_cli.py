"""The command line's door: words, messages, exit status, slim imports. No sweep runs here."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.commands.places import find_sweep, sweeps_under, word_for
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths

HEAVY = ("torch", "ray", "optuna", "scipy", "rich", "transformers")
CONFIG = {"type": "custom", "import_path": "m:P", "total": 4}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def make_sweep(storage: Path, name: str, *, failing: bool = False) -> SweepPaths:
    paths = SweepPaths.of(storage, name)
    ledger = Ledger.create(paths.root)
    trials = [f"{order:04d}-{order:08x}" for order in range(2)]
    ledger.append([Event("sweep_created", {"name": name, "spec": {}, "versions": {}, "space": {}})])
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    for order, trial in enumerate(trials):
        told = {"trial": trial, "order": order, "config": CONFIG, "parameters": {}, "choices": {}}
        lease = {"lease": f"{trial}-l", "run": f"{trial}/seed-0", "attempt": 0, "from_resource": 0, "milestones": [4]}
        ledger.append([Event("suggested", told), Event("lease_started", lease)])
        if failing:
            body = {
                "lease": f"{trial}-l",
                "run": f"{trial}/seed-0",
                "attempt": 0,
                "kind": "user",
                "message": "no such column",
                "traceback": "Traceback: deep\nKeyError: 'x'",
                "final": True,
            }
            ledger.append([Event("failed", body)])
    ledger.close()
    return paths


def test_every_command_resolves_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command, place in cli.COMMANDS.items():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert f"\n    {command} " in overview or f"\n    {command}\n" in overview
        assert cli.main([command, "--help"]) == 0
        assert command in capsys.readouterr().out


def test_a_command_of_verbs_says_that_one_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster"]) == 2
    assert "VERB" in capsys.readouterr().err


def files(folder: Path) -> list[Path]:
    """All but what SQLite keeps beside a ledger that was read."""
    return sorted(path for path in folder.rglob("*") if not path.name.endswith(("-shm", "-wal")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stauts", "x"], "did you mean 'status'?"),
        (["my.yaml"], "did you mean 'stockpot submit my.yaml'?"),
        (["submit"], "`submit` needs a sweep file: stockpot submit SWEEP.yaml"),
        (["check"], "`check` needs a sweep file"),
        (["submit", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["show"], "required: NAME"),
        (["submit", "--sett", "a=b"], "--sett is no option of 'stockpot submit'; did you mean --set?"),
        (["show", "quikstart"], "Did you mean 'quickstart'?"),
        (["resume", "quickstart.yaml"], "is a sweep file; give the sweep's name or its folder"),
        (["status", "quickstart", "--storage", "elsewhere"], "There are no sweeps there"),
        (["logs", "quickstart", "9"], "has no trial '9'; its trials: 0000-00000000 to 0001-00000001"),
        (["logs", "quickstart", "000x"], "has no trial '000x'"),
        (["compare", "quickstart", "./stockpot-runs/quickstart"], "the same sweep is named twice"),
        (["show", "quickstart", "--top", "0"], "argument --top: must be a whole number from 1 up, but got 0"),
        (["show", ""], "an empty NAME"),
        (["submit", "s.yaml", "--gpus", "1"], "--gpus is for clusters that are raised for a sweep: --address slurm://"),
        (["submit", "s.yaml", "--address", "slurm://", "--volume", "v"], "--volume is for --address kuberay://"),
        (["logs", "quickstart", "--job"], "it has no job"),
        (["resume", "quickstart", "--priority", "high"], "argument --priority: invalid int value: 'high'"),
    ],
)
def test_mistakes_are_one_message_and_exit_2(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(here / "stockpot-runs", "quickstart")
    before = files(here)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert files(here) == before


def test_a_missing_sweep_file_names_the_near_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "quickstart.yaml").write_text("name: x\n")
    assert cli.main(["check", "quickstrat.yaml"]) == 2
    assert "did you mean 'quickstart.yaml'?" in capsys.readouterr().err
    assert cli.main(["check", "."]) == 2
    assert "it holds quickstart.yaml" in capsys.readouterr().err


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_a_name_is_a_name_under_storage_or_a_folder(here: Path) -> None:
    made = make_sweep(here / "stockpot-runs", "one")
    other = make_sweep(here / "other", "two")
    assert find_sweep("one", "./stockpot-runs").root == made.root
    assert find_sweep("stockpot-runs/one", "./stockpot-runs").root == made.root
    assert find_sweep(str(other.root), "./stockpot-runs").root == other.root
    assert find_sweep("two", "other").root == other.root
    assert [paths.name for paths in sweeps_under("./stockpot-runs")] == ["one"]
    assert word_for(made) == "one"
    assert word_for(other) == str(other.root)


def test_a_sweep_known_by_its_segments_alone_is_found(here: Path) -> None:
    made = make_sweep(here / "stockpot-runs", "one")
    for path in made.root.glob("ledger.sqlite*"):
        path.unlink()
    assert find_sweep("one", "./stockpot-runs").root == made.root


def test_logs_show_failures_with_their_tracebacks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_sweep(here / "stockpot-runs", "bad", failing=True)
    assert cli.main(["logs", "bad"]) == 0
    out = capsys.readouterr().out
    assert "0000-00000000/seed-0: user: no such column" in out
    assert "Traceback: deep" not in out
    paths.logs.mkdir()
    paths.log("0001-00000001").write_text("".join(f"line {i}\n" for i in range(100)))
    assert cli.main(["logs", "bad", "1", "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "line 97\nline 98\nline 99\n" in out
    assert "line 96" not in out
    assert "Traceback: deep\nKeyError: 'x'" in out


def test_logs_show_what_a_running_trial_said_last(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_sweep(here / "stockpot-runs", "busy")
    ledger = Ledger.open(paths.root)
    trial = {"trial": "0002-00000002", "order": 2, "config": CONFIG, "parameters": {}, "choices": {}}
    lease = {"lease": "l", "run": "0002-00000002/seed-0", "attempt": 0, "from_resource": 0, "milestones": [4]}
    ledger.append([Event("suggested", trial), Event("lease_started", lease)])
    ledger.close()
    paths.logs.mkdir()
    paths.log("0002-00000002").write_text("step 1 of 4\nstep 2 of 4\n")
    assert cli.main(["logs", "busy"]) == 0
    assert "0002-00000002/seed-0: running: step 2 of 4\n" in capsys.readouterr().out


def test_stop_without_a_driver_says_so_and_leaves_no_request(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_sweep(here / "stockpot-runs", "one")
    assert cli.main(["stop", "one"]) == 0
    assert "no driver is running one" in capsys.readouterr().out
    assert not paths.stop_request.exists()


def test_stop_asks_a_live_driver_and_waits_so_long(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_sweep(here / "stockpot-runs", "one")
    driver = Ledger.open(paths.root)
    try:
        assert cli.main(["stop", "one", "--no-wait", "--grace", "0"]) == 0
        out = capsys.readouterr().out
        assert f"asked pid {os.getpid()}" in out
        assert "at once" in out
        asked = json.loads(paths.stop_request.read_text())
        assert (asked["pid"], asked["grace"]) == (os.getpid(), 0)
        assert cli.main(["stop", "one", "--timeout", "0.3"]) == 1
        assert "still running after 0.3 s" in capsys.readouterr().out
    finally:
        driver.close()


def test_an_empty_storage_lists_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert "no sweeps under" in capsys.readouterr().out
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_reader_that_goes_away_is_quiet(here: Path) -> None:
    paths = make_sweep(here / "stockpot-runs", "one")
    paths.logs.mkdir()
    paths.log("driver").write_text("x" * 80 + "\n" * 200_000)
    command = f"{sys.executable} -m sweeps.cli logs one -n 200000 | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sweeps.commands.look.list_sweeps", interrupted)
    assert cli.main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sweeps.commands.look.list_sweeps", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["list"])


def loaded_by(*words: str) -> set[str]:
    """Modules in a fresh process after the command ran."""
    code = (
        "import sys, io, contextlib\nfrom sweeps import cli\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    status = cli.main({list(words)!r})\n"
        "print(status, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    status, *modules = done.stdout.split()
    assert status == "0", done.stderr
    return set(modules)


def test_help_imports_nothing_heavy() -> None:
    assert not loaded_by("--help") & {*HEAVY, "numpy", "pydantic", "yaml"}


def test_logs_import_nothing_heavy(here: Path) -> None:
    make_sweep(here / "stockpot-runs", "one")
    assert not loaded_by("logs", "one") & set(HEAVY)


def test_check_imports_nothing_heavy(here: Path) -> None:
    (here / "m.py").write_text("class P: ...\n")
    (here / "sweep.yaml").write_text(
        "name: s\npipeline: {type: custom, import_path: 'm:P', total: 4, metrics: {loss: minimize}, kwargs: {x: 1}}\n"
        "parameters: {kwargs.x: {min: 0.0, max: 1.0}}\nmethod: tpe\nmetric: loss\nbudget: {trials: 4}\n"
        "early_terminate: {type: asha, min: 1, eta: 2}\n"
    )
    assert not loaded_by("check", "sweep.yaml") & {*HEAVY, "numpy"}
    assert not loaded_by("check", "sweep.yaml", "--json") & {*HEAVY, "numpy"}


def test_output_that_is_no_file_survives_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(["list"]) == 0


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sweeps.commands.look as look

    def full(arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/small/ledger/0001.jsonl")

    monkeypatch.setattr(look, "list_sweeps", full)
    assert cli.main(["list"]) == 1
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "stockpot: the disk is full (/runs/small/ledger/0001.jsonl): free some space and go on; what was finished is whole"
    ]
    with pytest.raises(OSError, match="No space left"):
        cli.main(["--debug", "list"])
