"""Secrets are read by their names from a process's environment, and taken out of what it says; nobody passes one on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from cluster.local import _unset_told
from pipelines.stage import UserError
from sweeps import secret_values
from sweeps.failures import classify
from sweeps.secret_values import (
    MASK,
    Masks,
    absent,
    filled_in,
    know,
    masked,
    names_of,
    read_secret,
    refuse_absent,
    values_of,
)


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process knows ends with the test."""
    monkeypatch.setattr(secret_values, "_OWN", [Masks()])


def test_the_file_names_what_the_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret")
    monkeypatch.delenv("B_TOKEN", raising=False)
    assert filled_in({"X": "Bearer ${A_TOKEN}", "Y": "plain"}) == {"X": "Bearer s3cret", "Y": "plain"}
    env = {"X": "${B_TOKEN}", "Y": "${A_TOKEN}", "Z": "${B_TOKEN}"}
    assert names_of(env) == ("A_TOKEN", "B_TOKEN")
    assert absent(env) == ["B_TOKEN"]
    for read in (filled_in, refuse_absent):
        with pytest.raises(UserError, match="B_TOKEN not in the environment; export it"):
            read(env)
    assert read_secret("A_TOKEN") == "s3cret"


def test_named_values_and_those_of_variables_with_a_secrets_name_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has = {"MY_WORD": "true", "SOME_API_KEY": "planted", "USE_TOKEN": "true", "A_TOKEN_PATH": str(tmp_path)}
    for name, value in has.items():
        monkeypatch.setenv(name, value)
    found = values_of({"A": "${MY_WORD}", "B": "${NOT_HERE_EITHER}"})
    assert found[0] == "true", "the file says that it is one"
    assert "planted" in found
    assert str(tmp_path) not in found, "a path is none, and would be missed in every traceback"
    assert "true" not in values_of({})


def test_the_longest_goes_first_and_short_ones_are_none() -> None:
    masks = Masks(["abcd", "abcdefgh", "xyz"])
    assert masks.text("abcdefgh abcd xyz") == f"{MASK} {MASK} xyz"


@pytest.mark.parametrize("spelled", [str, repr, json.dumps, lambda text: quote(text, safe=""), str.strip])
def test_a_secret_is_found_as_messages_write_it(spelled: object) -> None:
    secret = 'plänted/"word"\\with\' all\tof it\n'
    said = spelled(secret)  # type: ignore[operator]
    assert re.sub(r"\W", "", Masks([secret]).text(f"<{said}>")) == ""


def test_lines_of_a_secret_with_several_are_secrets() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQ==\n}\n-----END KEY-----\n"
    know([key])
    assert masked("bad line: hkiG9w0BAQ== }") == f"bad line: {MASK} }}"


def test_a_failure_is_masked_before_it_is_cut() -> None:
    know(["planted-" + "z" * 400 + "\nsecond-line"])
    secret = "planted-" + "z" * 400
    failure = classify(ValueError(f"{'x' * 300} {secret}"))
    assert "planted" not in failure.message + failure.traceback
    assert "planted" not in classify(RuntimeError(f"out of memory at {secret}\nmore")).message
    assert classify(RuntimeError("out of memory")).kind == "oom"
    shaped = classify(UserError("no hf_abcdefghijklmnopqrstuvwxyz at https://me:word@host/x"))
    assert (shaped.kind, shaped.message) == ("user", f"no {MASK} at https://{MASK}@host/x")


def test_nodes_that_lack_the_same_are_named_together() -> None:
    one = _unset_told([("10.0.0.4", ()), ("10.0.0.5", ("HF_TOKEN",)), ("10.0.0.5", ("HF_TOKEN",))])
    assert one == (
        "node 10.0.0.5: HF_TOKEN is not in the environment its Ray was started in; export it there and start the node again"
    )
    two = _unset_told([("a", ("X", "Y")), ("b", ("X", "Y")), ("c", ("X",))]).splitlines()
    assert two[0].startswith("nodes a, b: X, Y are not in the environment their Ray was started in; export them there")
    assert two[1].startswith("node c: X is not")
