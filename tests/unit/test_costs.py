"""What axes cost: the axis lines of `compare`, the report's sentence, and columns that say unknown and estimated."""

import json
import math
from dataclasses import replace

import pytest
from plans import Plan

from evaluators.base import Score
from sweeps.board import Leaderboard, Row, to_csv, to_json
from sweeps.board_text import to_text
from sweeps.compare import Source, compare_all
from sweeps.compare_text import all_to_json, all_to_text
from sweeps.costs import cost_axes, energy_sentences
from sweeps.leaderboard import leaderboard
from sweeps.metrics import Metric
from sweeps.searchers.base import Suggestion
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.state import ReportState, RunState, SweepState, TrialState

TOTAL = 9
LOSS, JOULES = Metric("tune/loss", "minimize"), Metric("cost/joules", "minimize")


def swept(joules, estimated=0.0, phase="finished"):
    """A folded sweep: joules by value of `precision`, one trial each."""
    state = SweepState(name="s")
    for value, spent in joules.items():
        for told in spent:
            order = len(state.trials)
            trial = f"{order:04d}-00000000"
            parameters = {"pipeline.precision": value, "pipeline.learning_rate": 0.1 * (order + 1)}
            state.trials[trial] = TrialState(trial, order, {"total": TOTAL}, Suggestion(parameters, {}, {}, {}))
            run = RunState(trial, 0, order, phase=phase, seconds=1.0)
            score = Score("loss", "tune", 1.0 + order, 0.1, 4, 0, "minimize")
            telemetry = {"cost/joules": told, "cost/co2_grams": told / 10, "cost/estimated_joules": estimated}
            resource = TOTAL if phase == "finished" else 3
            run.reports[resource] = ReportState(resource, 0, {"tune/loss": score}, telemetry, None, 0.0)
            state.runs[run.id] = run
    return state


def a_plan(*metrics):
    spec = SweepSpec.model_validate(
        {
            "name": "s",
            "pipeline": {"type": "custom", "import_path": "a:B", "total": TOTAL, "metrics": {"loss": "minimize"}},
            "metric": {"name": "loss"},
        }
    )
    return Plan(spec, Space(()), (3, TOTAL), 1, metrics or (LOSS,))


class NoItems:
    def items(self, owner, resource, name, split):
        return None


def compared(state):
    return compare_all([Source("s", state, NoItems(), a_plan())], metrics=(JOULES,))


def test_a_significant_difference_is_claimed_with_its_numbers():
    state = swept({"fp32": [100.0, 102.0, 99.0], "bf16": [80.0, 81.0, 79.0]})
    text = all_to_text(compared(state))
    assert "pipeline.precision: fp32 100.3 ± 1.5 (n=3), bf16 80 ± 1 (n=3)" in text
    assert "bf16 takes less than fp32: fp32 minus bf16 +20.3 (95 % from" in text
    [entry] = all_to_json(compared(state))["costs"]
    axes = {axis["path"]: axis for axis in entry["axes"]}
    assert axes["pipeline.precision"]["pairs"][0]["lower"] == "bf16"
    json.dumps(entry, allow_nan=False)
    assert energy_sentences(state, a_plan())[0].startswith("Energy in joules by pipeline.precision: fp32 100.3")


def test_what_is_not_significant_is_said_to_be_so():
    state = swept({"fp32": [100.0, 120.0, 90.0], "bf16": [95.0, 110.0, 80.0]})
    assert ", not significant" in all_to_text(compared(state))
    [sentence] = [s for s in energy_sentences(state, a_plan()) if "precision" in s]
    assert "not significant" in sentence
    assert "takes less" not in sentence


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_runs_claim_nothing(count):
    state = swept({"fp32": [100.0, 101.0][:count], "bf16": [50.0, 51.0][:count]})
    text = all_to_text(compared(state))
    assert f"fp32 has {count}, bf16 has {count}: nothing is claimed of a value with fewer than 3 runs" in text
    assert "takes less" not in text


def test_runs_that_stopped_early_or_told_nothing_take_no_part():
    assert cost_axes(swept({"a": [1.0] * 3, "b": [2.0] * 3}, phase="stopped"), a_plan()) == ()
    assert cost_axes(swept({"a": [math.nan] * 3, "b": [math.nan] * 3}), a_plan()) == ()


def test_an_estimate_is_named_as_one():
    state = swept({"fp32": [100.0, 102.0, 99.0], "bf16": [80.0, 81.0, 79.0]}, estimated=5.0)
    assert "estimated from stated watts" in energy_sentences(state, a_plan())[0]
    board = leaderboard(state, NoItems(), a_plan())
    text = to_text(board, 200)
    assert "~100" in text
    assert "~ of joules and CO2: an estimate from the watts that the file states, not measured" in text
    assert "estimated_joules" not in text
    narrow = to_text(board, 60)
    assert "left out for width: " in narrow
    assert "~" not in narrow


def test_columns_of_what_no_sensor_told_are_null_in_json_and_not_in_the_table():
    state = swept({"fp32": [math.nan, math.nan]})
    board = leaderboard(state, NoItems(), a_plan())
    assert [row["cost"]["joules"] for row in to_json(board)["rows"]] == [None, None]
    assert "joules" not in to_text(board, 200)
    assert to_csv(board).splitlines()[1].count("nan") == 0
    assert isinstance(board, Leaderboard)
    assert replace(Row(None, "trial", "x"), cost={"joules": math.nan}).record()["cost"] == {"joules": None}
