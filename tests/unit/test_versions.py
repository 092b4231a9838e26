"""Which differing versions no sweep may begin with, which are told, and which are none."""

from __future__ import annotations

import platform

import pytest

from cluster.packages import code_hash
from cluster.versions import CODE, Comparison, Told, compare, own_versions

OWN = {"python": "3.11.7", "ray": "2.60.0", CODE: "aaaa", "torch": "2.13.0+cpu", "trl": "1.16.0"}


def node(where: str, trials: bool = True, **versions: str | None) -> Told:
    changed = {**OWN, **{name.replace("code", CODE): version for name, version in versions.items()}}
    return Told(where, {name: version for name, version in changed.items() if version is not None}, trials)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("A"), node("B", python="3.11.9", torch="2.13.0+cu128")], Comparison()),
        ([node("A", python="3.12.1")], Comparison(("python is 3.12.1 on A, and 3.11.7 here",))),
        ([node("A"), node("B", trials=False, ray="2.59.0")], Comparison(("ray is 2.59.0 on B, and 2.60.0 here",))),
        (
            [node("A", code="bbbb")],
            Comparison(
                (f"{CODE} is bbbb on A, and aaaa here: something there puts another copy first on Python's path",)
            ),
        ),
        (
            [node("A"), node("B", torch="2.12.1"), node("C")],
            Comparison(("torch is 2.12.1 on B and 2.13.0+cpu on A, C: trials there could not be compared",)),
        ),
        ([node("A"), node("B", trials=False, torch="2.12.1")], Comparison()),
        (
            [node("A", torch="2.12.1"), node("B", torch="2.12.1")],
            Comparison((), ("torch is 2.12.1 where trials run, and 2.13.0+cpu where this driver does",)),
        ),
        ([node("A"), node("B", trl=None)], Comparison((), ("trl is missing on B",))),
        (
            [node(name, ray="2.61.0") for name in "ABCDE"],
            Comparison(("ray is 2.61.0 on A, B, C and 2 more, and 2.60.0 here",)),
        ),
    ],
    ids=["patch and build", "python", "ray", "code", "among", "no trials", "driver", "missing", "many"],
)
def test_what_differs_is_named_with_both_versions(nodes: list[Told], expected: Comparison) -> None:
    assert compare(OWN, nodes) == expected


def test_a_process_tells_what_its_scores_stand_on() -> None:
    own = own_versions()
    assert (own["python"], own[CODE]) == (platform.python_version(), code_hash())
    assert {"ray", "torch", "transformers", "peft", "trl", "stockpot"} <= set(own)
    assert compare(own, [Told("here", own)]) == Comparison()
