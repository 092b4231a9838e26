"""Identity: canonical JSON, ids, and paths made from them."""

from pathlib import Path

import pytest

from sweeps.paths import SweepPaths
from sweeps.trial import Attempt, Run, canonical, config_hash, finite, trial_id


def test_canonical_json_is_one_text():
    assert canonical({"b": [1, 1.0, True, None], "a": "ü"}) == '{"a":"ü","b":[1,1.0,true,null]}'
    assert canonical({"a": 1}) != canonical({"a": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": float("nan")})
    with pytest.raises(TypeError):
        canonical({"a": Path("x")})


def test_a_trial_is_its_order_and_its_configuration():
    config = {"lr": 1e-4, "r": 8}
    assert trial_id(7, config) == f"0007-{config_hash(config)[:8]}"
    assert trial_id(7, {"r": 8, "lr": 1e-4}) == trial_id(7, config)
    assert trial_id(12345, config).startswith("12345-")


def test_runs_and_attempts_have_ids_and_folders():
    run = Run("0007-5ad5ee31", 2)
    assert run.id == "0007-5ad5ee31/seed-2"
    assert Run.parse(run.id) == run
    assert Attempt(run, 3).id == "0007-5ad5ee31/seed-2/attempt-3"
    paths = SweepPaths(Path("/s"))
    assert paths.checkpoint(Attempt(run, 3), 30) == Path("/s/trials/0007-5ad5ee31/seed-2/attempt-3/checkpoint-30")


def test_finite():
    assert [finite(x) for x in (0.0, None, float("nan"), float("inf"))] == [True, False, False, False]
