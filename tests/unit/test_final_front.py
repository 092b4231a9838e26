"""The final step and the soup of a sweep with several metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from soup_machine import Killed, Stage, load

from sweeps.board_text import to_text
from sweeps.commands.story import final_lines
from sweeps.final import judge_soup, run_final
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.load import from_record
from sweeps.scoring import front_runs, ranked
from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup
from sweeps.sources import resolve_source

COST = "[loss, {name: cost/seconds, goal: minimize}]"
SCORES = "[loss, exact_match, {name: cost/seconds, goal: minimize}]"
NOISES = [1.2, 0.3, 0.8, 1.4]
SECONDS = [1.0, 9.0, 5.0, 9.5]


def stage(
    folder: Path,
    metric: str = COST,
    noises: Sequence[float] = NOISES,
    seconds: Sequence[float] = SECONDS,
    more: str = "",
) -> Stage:
    folder.mkdir(exist_ok=True)
    return Stage(folder, list(noises), more, metric=metric, seconds=seconds)


def final(made: Stage) -> None:
    soups = [soup for soup in fold(made.ledger.events()).soups.values() if soup.finished is not None]
    run_final(made.loaded, made.ledger, made.paths, made.backend, soups[-1] if soups else None, made.said.append)


def soup(made: Stage, **config: Any) -> Any:
    return make_soup(
        made.loaded,
        made.ledger,
        made.paths,
        made.backend,
        parse_soup({"barrier": False, "top": 3, **config}),
        made.said.append,
    )


def test_the_front_is_judged_against_the_baseline_on_every_score(tmp_path: Path) -> None:
    made = stage(tmp_path, SCORES)
    soup(made, method="uniform")
    final(made)
    state = fold(made.ledger.events())
    assert [candidate["role"] for candidate in state.candidates] == [
        "baseline",
        "front-1",
        "front-2",
        "front-3",
        "soup",
    ]
    assert [candidate.get("run") for candidate in state.candidates[1:4]] == [made.runs[1], made.runs[2], made.runs[0]]
    (opened,) = made.bodies("test_opened")
    assert opened["candidates"] == ["baseline", "front-1", "front-2", "front-3", "soup"]
    assert all(set(body["scores"]) == {"test/loss", "test/exact_match"} for body in state.finals)
    expected = [
        ("soup", "front-1"),
        *((f"front-{k}", "baseline") for k in (1, 2, 3)),
        ("soup", "baseline"),
    ]
    verdicts = [(body["left"], body["right"], body["metric"]) for body in state.verdicts]
    assert verdicts == [(*pair, metric) for metric in ("test/loss", "test/exact_match") for pair in expected]
    raw = [body["p"] for body in state.verdicts]
    assert all(body["p_holm"] >= body["p"] for body in state.verdicts)
    assert max(body["p_holm"] / body["p"] for body in state.verdicts) == pytest.approx(len(raw))
    assert [body["better"] for body in state.verdicts if (body["left"], body["right"]) == ("front-1", "baseline")] == [
        "left",
        "left",
    ]


def test_the_tables_say_that_there_is_no_winner(tmp_path: Path) -> None:
    made = stage(tmp_path, SCORES)
    final(made)
    board = leaderboard(fold(made.ledger.events()), made.ledger, made.loaded)
    rows = {row.name: row for row in board.rows}
    assert [row.front for row in board.trials] == [1, 1, 1, 2]
    assert set(rows[made.runs[1].partition("/")[0]].tests) == {"test/loss", "test/exact_match"}
    assert set(rows["baseline"].tests) == {"test/loss", "test/exact_match"}
    assert "test/exact_match" in to_text(board, 200)
    lines = final_lines(board)
    assert "there is no single winner: no run of the front is better than another on every metric" in lines
    assert any(line.startswith(f"front-1 {made.runs[1].partition('/')[0]}") for line in lines)
    assert sum(line.startswith("front-2 - baseline on test/") for line in lines) == 2


def test_one_that_is_better_on_every_metric_is_the_winner(tmp_path: Path) -> None:
    made = stage(tmp_path, noises=[0.9, 0.4, 0.8], seconds=[3.0, 1.0, 2.0])
    final(made)
    state = fold(made.ledger.events())
    assert [candidate["role"] for candidate in state.candidates] == ["baseline", "winner"]
    assert [(body["left"], body["right"]) for body in state.verdicts] == [("winner", "baseline")]


def test_no_more_of_a_front_is_judged_than_five_and_they_cover_it(tmp_path: Path) -> None:
    noises = [0.2 * 1.5**i for i in range(8)]
    made = stage(tmp_path, noises=noises, seconds=[80.0 - 10 * i for i in range(8)])
    final(made)
    runs = [candidate["run"] for candidate in fold(made.ledger.events()).candidates if "run" in candidate]
    assert len(runs) == 5
    assert runs[0] == made.runs[0]
    assert made.runs[7] in runs
    assert runs == sorted(runs)


def test_a_member_without_its_checkpoint_is_passed_over(tmp_path: Path) -> None:
    made = stage(tmp_path)
    for run in (made.runs[0], made.runs[1]):
        shutil.rmtree(made.paths.root / "trials" / run / "attempt-0" / "checkpoint-30")
    final(made)
    roles = [(candidate["role"], candidate.get("run")) for candidate in fold(made.ledger.events()).candidates]
    assert roles == [("baseline", None), ("front-1", made.runs[2])]


def test_where_the_front_has_no_checkpoint_the_next_one_is_judged_but_is_no_winner(tmp_path: Path) -> None:
    made = stage(tmp_path)
    for run in made.runs[:3]:
        shutil.rmtree(made.paths.root / "trials" / run / "attempt-0" / "checkpoint-30")
    final(made)
    roles = [(candidate["role"], candidate.get("run")) for candidate in fold(made.ledger.events()).candidates]
    assert roles == [("baseline", None), ("front-1", made.runs[3])]


def test_test_seeds_retrain_every_member_of_the_front(tmp_path: Path) -> None:
    made = stage(tmp_path, noises=NOISES[:2], seconds=SECONDS[:2], more="seeds: {tune: [0], test: [100, 101]}")
    final(made)
    state = fold(made.ledger.events())
    trained = [payload for function, payload in made.backend.calls if function == "sweeps.retrain:train"]
    assert [(payload["trial"][:4], payload["seed"]) for payload in trained] == [
        ("0001", 100),
        ("0001", 101),
        ("0000", 100),
        ("0000", 101),
    ]
    assert [(body["left"], body["covers"]) for body in state.verdicts] == [
        ("front-1", "data and training"),
        ("front-2", "data and training"),
    ]


def test_a_soup_judged_later_meets_the_front(tmp_path: Path) -> None:
    made = stage(tmp_path)
    final(made)
    later = soup(made, method="uniform")
    judge_soup(made.loaded, made.ledger, made.paths, made.backend, later, made.said.append)
    state = fold(made.ledger.events())
    pairs = [(body["left"], body["right"]) for body in state.verdicts]
    assert pairs[-2:] == [("uniform-1", "front-1"), ("uniform-1", "baseline")]
    assert state.test_openings == 2


@pytest.mark.parametrize("after", range(12))
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, after: int) -> None:
    calm, made = stage(tmp_path / "calm"), stage(tmp_path / "killed")
    final(calm)
    made.kill("event", after)
    try:
        final(made)
    except Killed:
        final(made)
    assert json.dumps(made.facts()) == json.dumps(calm.facts())


def test_ingredients_are_the_best_on_the_metric_that_chooses_the_soup(tmp_path: Path) -> None:
    first_seconds = "[{name: cost/seconds, goal: minimize}, loss]"
    made = stage(tmp_path, first_seconds)
    assert [one.run.id for one in ranked(made.loaded, fold(made.ledger.events()))][:2] == [made.runs[0], made.runs[2]]
    state = soup(made, top=2)
    assert state.metric == "select/loss"
    assert [ingredient["run"] for ingredient in state.ingredients] == [made.runs[1], made.runs[2]]
    assert state.ingredients[0]["score"]["name"] == "loss"


def test_only_telemetry_makes_no_soup_and_is_not_judged(tmp_path: Path) -> None:
    made = stage(tmp_path, COST)
    made.loaded = from_record(
        {**made.loaded.record(), "metrics": [{"name": "cost/seconds", "direction": "minimize"}] * 2}
    )
    assert soup(made) is None
    assert "telemetry can't choose a soup; give soup.metric" in made.said[-1]
    final(made)
    assert made.said[-1] == "final step: no evaluator runs on test, so nothing was judged"


def test_front_runs_count_a_trial_once(tmp_path: Path) -> None:
    made = stage(tmp_path)
    placed = ranked(made.loaded, fold(made.ledger.events()))
    assert [one.run.id for one in front_runs(made.loaded, placed, None)] == [made.runs[1], made.runs[2], made.runs[0]]
    assert [one.run.id for one in front_runs(made.loaded, [*placed, placed[0]], None)][:1] == [made.runs[1]]
    assert len(front_runs(made.loaded, [*placed, placed[0]], None)) == 3


def test_a_record_is_read_back_with_all_metrics_and_an_old_one_with_its_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, metric=SCORES)
    assert from_record(json.loads(json.dumps(loaded.record()))) == loaded
    old = {key: value for key, value in load(tmp_path).record().items() if key != "metrics"}
    old |= {"metric": "tune/loss", "direction": "minimize"}
    assert from_record(old).metrics == load(tmp_path).metrics


def test_best_of_a_sweep_with_several_metrics_is_said_to_be_the_primary_ones(tmp_path: Path) -> None:
    made = stage(tmp_path)
    made.paths.resolved_spec.write_text(json.dumps(made.loaded.record()))
    source = resolve_source(f"sweep://{made.paths.name}/best", made.paths.root.parent, tmp_path)
    assert made.runs[1] in source.path
    assert "the best on tune/loss alone of 2 metrics" in source.note
    again = load(tmp_path, f"baseline: {{base_model: sweep://{made.paths.name}/best}}")
    assert again.warnings is not None
