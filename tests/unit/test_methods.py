"""`compare --by`: quantiles over each method's configurations, and the share of them that beats the baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from evaluators.base import ItemSet, Score, summarise
from sweeps.compare import CompareError, Source
from sweeps.compare_text import methods_to_text
from sweeps.events import Event, StoredItems
from sweeps.fold import fold
from sweeps.methods import ABSENT, Methods, quantiles, robustness, value_at
from sweeps.metrics import Metric

ROWS = 40
ITEMS = ItemSet(tuple(f"i{i}" for i in range(ROWS)))
BASE = np.random.default_rng(0).normal(2.0, 0.5, ROWS)
CANDIDATE = {"role": "baseline", "model": "base"}


class Sweep:
    """Configurations with given losses: ledger, plan and fold in one."""

    metrics = (Metric("tune/loss", "minimize"),)

    def __init__(self, name: str = "one", baseline: bool = True) -> None:
        self.name, self.count = name, 0
        self.events = [Event("sweep_created", {"name": name, "spec": {}})]
        self.stored: dict[tuple[str, int, str], StoredItems] = {}
        if baseline:
            score = self.score("base", 0, BASE)
            body = {"candidate": CANDIDATE, "seed": None, "owner": "base", "scores": [score.record()]}
            self.events += [Event("final_frozen", {"candidates": [CANDIDATE]}), Event("baseline_scored", body)]

    def score(self, owner: str, resource: int, x: Any, rows: int = ROWS) -> Score:
        item_set = ItemSet(ITEMS.ids[:rows])
        score = summarise("loss", "tune", "minimize", item_set, np.asarray(x)[:rows])
        assert score.items is not None
        self.stored[owner, resource, "loss"] = StoredItems(item_set, score.items)
        return score

    def milestones_of(self, config: Mapping[str, Any]) -> Sequence[int]:
        return (8, 30)

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        return self.stored.get((owner, resource, name))

    def ran(
        self, config: Mapping[str, Any], shift: float, rung: int = 30, kl: float | None = None, rows: int = ROWS
    ) -> None:
        trial = f"{self.count:04d}-t"
        run = f"{trial}/seed-0"
        suggested = {"trial": trial, "order": self.count, "config": config, "parameters": {}, "choices": {}}
        self.events.append(Event("suggested", suggested))
        self.events.append(Event("lease_started", {"lease": "l", "run": run, "attempt": 0, "milestones": [30]}))
        noise = 0.02 * np.random.default_rng(self.count).normal(size=ROWS)
        scores = [self.score(run, rung, BASE + shift + noise - noise[:rows].mean(), rows)]
        if kl is not None:
            scores.append(Score("kl", "tune", kl, 0.1, 5, 0, "minimize"))
        body = {"run": run, "attempt": 0, "resource": rung, "scores": [score.record() for score in scores]}
        self.events.append(Event("reported", body))
        self.count += 1

    def failed(self, config: Mapping[str, Any], kind: str) -> None:
        trial = f"{self.count:04d}-t"
        run = f"{trial}/seed-0"
        suggested = {"trial": trial, "order": self.count, "config": config, "parameters": {}, "choices": {}}
        failed = {"run": run, "kind": kind, "message": "", "final": True}
        ended = {"run": run, "state": "failed", "reason": ""}
        started = {"lease": "l", "run": run, "attempt": 0, "milestones": [30]}
        self.events += [Event("suggested", suggested), Event("lease_started", started)]
        self.events += [Event("failed", failed), Event("run_ended", ended)]
        self.count += 1

    def source(self) -> Source:
        return Source(self.name, fold(self.events), self, self)  # type: ignore[arg-type]


def loss(kind: str) -> dict[str, Any]:
    return {"loss": {"type": kind, "beta": 0.1}, "optimizer": "adamw"}


def report(*sweeps: Sweep, by: str = "loss.type", **settings: Any) -> Methods:
    return robustness([sweep.source() for sweep in sweeps], by, **settings)


def test_quantiles_are_the_definition() -> None:
    assert quantiles([4.0, 1.0, 3.0, 2.0]) == {"min": 1.0, "q25": 1.75, "median": 2.5, "q75": 3.25, "max": 4.0}
    assert quantiles([7.0]) == dict.fromkeys(("min", "q25", "median", "q75", "max"), 7.0)
    assert all(math.isnan(value) for value in quantiles([]).values())


def test_each_method_has_all_its_configurations() -> None:
    sweep = Sweep()
    shifts = {"sigmoid": (-0.5, 0.5, 1.0, 2.0), "ln_dpo": (-0.1, -0.2, -0.3)}
    for kind, values in shifts.items():
        for place, shift in enumerate(values):
            sweep.ran(loss(kind), shift, kl=float(place))
    found = report(sweep, by="pipeline.loss.type")
    assert [one.value for one in found.methods] == ["ln_dpo", "sigmoid"]
    for one in found.methods:
        scores = [float(BASE.mean()) + shift for shift in shifts[one.value]]
        assert list(one.quantiles.values()) == pytest.approx(
            list(np.quantile(scores, [0, 0.25, 0.5, 0.75, 1])), abs=1e-4
        )
    ln, sigmoid = found.methods
    assert (ln.configurations, ln.beats, ln.shown, ln.compared) == (3, 3, 3, 3)
    assert (sigmoid.beats, sigmoid.shown, sigmoid.compared) == (1, 1, 4)
    assert sigmoid.means["tune/kl"].value == 1.5
    assert sigmoid.means["tune/kl"].se == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)
    assert found.baselines["one"].value == pytest.approx(float(BASE.mean()), abs=1e-5)


def test_what_rows_can_t_show_is_no_proof() -> None:
    sweep = Sweep()
    sweep.ran(loss("sigmoid"), -0.0001)
    [one] = report(sweep).methods
    assert (one.beats, one.shown, one.compared) == (1, 0, 1)


def test_a_divergence_beats_nothing_and_a_lost_machine_says_nothing() -> None:
    sweep = Sweep()
    sweep.ran(loss("simpo"), -0.5)
    sweep.failed(loss("simpo"), "nan")
    sweep.failed(loss("simpo"), "node")
    [one] = report(sweep).methods
    assert (one.configurations, one.scored, one.diverged, one.failed) == (3, 1, 1, 1)
    assert (one.beats, one.compared) == (1, 2)
    text = methods_to_text(report(sweep))
    assert "1/2 (50 %)" in text
    assert "1 configurations failed for reasons that are not theirs" in text


def test_an_early_end_is_told_and_held_against_the_same_rows() -> None:
    sweep = Sweep()
    sweep.ran(loss("simpo"), -0.5, rung=8, rows=10)
    found = report(sweep)
    assert (found.methods[0].whole, found.methods[0].shown) == (0, 1)
    assert "1 of 1 configurations ended before their total" in methods_to_text(found)


def test_several_sweeps_make_one_table() -> None:
    a, b = Sweep("a"), Sweep("b")
    a.ran({**loss("sigmoid"), "optimizer": "adamw"}, 0.1)
    b.ran({"retrieve": {"type": "bm25"}, "optimizer": "adafactor"}, 0.2)
    assert {one.value for one in report(a, b, by="optimizer").methods} == {"adamw", "adafactor"}
    assert {one.value for one in report(a, b, by="retrieve").methods} == {"bm25", ABSENT}
    assert set(report(a, b, by="optimizer").baselines) == {"a", "b"}


def test_another_metric_can_be_picked() -> None:
    sweep = Sweep()
    for kl in (1.0, 3.0):
        sweep.ran(loss("sigmoid"), 0.0, kl=kl)
    [one] = report(sweep, metrics=[Metric("tune/kl", "minimize"), Metric("tune/loss", "minimize")]).methods
    assert one.quantiles["median"] == 2.0
    assert set(one.means) == {"tune/loss"}


def test_without_a_baseline_there_is_no_share() -> None:
    sweep = Sweep(baseline=False)
    sweep.ran(loss("sigmoid"), 0.0)
    found = report(sweep)
    assert found.methods[0].compared == 0
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["methods"][0]["share_beats"] is None
    assert "no share beats the baseline" in methods_to_text(found)


def test_an_unknown_key_is_answered_with_a_near_one() -> None:
    sweep = Sweep()
    sweep.ran(loss("sigmoid"), 0.0)
    with pytest.raises(CompareError, match=r"did you mean 'loss\.type'"):
        report(sweep, by="loss.typ")
    with pytest.raises(CompareError, match="no configuration has a result yet"):
        report(Sweep())


def test_values_in_words() -> None:
    config = {"adapter": None, "chunk": {"type": "sentences", "size": 3}, "learning_rate": 1e-4, "modules": ["q", "v"]}
    assert [value_at(config, key) for key in ("adapter", "chunk", "chunk.size", "learning_rate", "modules", "x.y")] == [
        "none", "sentences", "3", "0.0001", '["q", "v"]', ABSENT,
    ]  # fmt: skip
