"""`sweep://NAME/WHAT` leads to weights that are there, or says what there is."""

import json
from pathlib import Path

import pytest
from soup_machine import Stage

from sweeps.events import Event
from sweeps.load import load_text
from sweeps.problems import SpecError
from sweeps.sources import SourceError, resolve_source, unfoldable


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path, [0.5, 0.1, 0.9])
    (made.paths.root / "sweep.resolved.json").write_text(json.dumps(made.loaded.record()))
    return made


def ask(stage: Stage, what: str) -> Path:
    name = stage.paths.name
    return Path(resolve_source(f"sweep://{name}/{what}", stage.paths.root.parent, Path(".")).path)


def test_best_is_the_leaderboards_first(stage: Stage) -> None:
    assert ask(stage, "best") == stage.paths.root / "trials" / stage.runs[1] / "attempt-0" / "checkpoint-30"


def test_a_trial_is_named_whole_or_by_its_order(stage: Stage) -> None:
    assert ask(stage, "0002") == ask(stage, "0002-abcdef00")


def test_the_last_soup_that_was_made(stage: Stage) -> None:
    with pytest.raises(SourceError, match="has no finished soup"):
        ask(stage, "soup")
    for name, folder in (("greedy-1", "soups/greedy-1"), ("greedy-2", "")):
        stage.ledger.append(
            [
                Event("soup_started", {"soup": name, "method": "greedy", "metric": "select/loss", "ingredients": []}),
                Event("soup_finished", {"soup": name, "folder": folder, "ingredients": [], "hash": "", "score": None}),
            ]
        )
    made = stage.paths.root / "soups" / "greedy-1"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    assert ask(stage, "soup") == made


def test_weights_that_are_gone_are_said_to_be(stage: Stage) -> None:
    run = stage.runs[1]
    for resource in (10, 30):
        stage.ledger.append([Event("checkpoint_deleted", {"run": run, "attempt": 0, "resource": resource, "bytes": 1})])
    with pytest.raises(SourceError, match="was kept"):
        ask(stage, "best")


@pytest.mark.parametrize("what", ["bset", "0009"])
def test_an_unknown_trial_gets_a_hint(stage: Stage, what: str) -> None:
    with pytest.raises(SourceError, match="has no trial"):
        ask(stage, what)


def test_a_tuned_prompt_is_nothing_to_begin_from(stage: Stage) -> None:
    folder = ask(stage, "best")
    assert unfoldable(str(folder)) is None
    (folder / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    assert "virtual tokens" in str(unfoldable(str(folder)))
    text = (
        "name: next\npipeline:\n  type: sft\n  base_model: sweep://NAME/best\n  datasets: {train: {path: t.jsonl, type: text}}\n"
        "  max_steps: 3\nstorage: STORAGE\nmetric: loss\n"
    )
    text = text.replace("NAME", stage.paths.name).replace("STORAGE", str(stage.paths.root.parent))
    (folder / "t.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(SpecError) as caught:
        load_text(text.encode(), folder, (), "next.yaml")
    said = {problem.place: str(problem) for problem in caught.value.problems}
    assert "holds virtual tokens that stand before every row" in said["pipeline.base_model"]
