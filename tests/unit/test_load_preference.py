"""A preference tuning's sweep file at the door: losses as a choice, data that fits the loss, metrics and references."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import load, problems
from tiny import save_model, write_rows

from sweeps import cli

DPO = """\
name: demo
pipeline:
  type: dpo
  base_model: HuggingFaceTB/SmolLM2-135M-Instruct
  datasets:
    train: {path: data/train.jsonl, type: preference}
    tune: {fraction: 0.1}
    select: {fraction: 0.1}
  max_steps: 27
metric: reward_accuracy
"""


def test_a_bare_word_is_a_loss_with_its_defaults(tmp_path: Path) -> None:
    for word, beta in (("sigmoid", 0.1), ("ln_dpo", 5.0), ("simpo", 2.0)):
        config = load(tmp_path, DPO, (f"pipeline.loss={word}",)).resolve({})
        assert (config["loss"]["type"], config["loss"]["beta"]) == (word, beta)
    assert load(tmp_path, DPO).resolve({})["loss"] == {"type": "sigmoid", "beta": 0.1}


def test_losses_are_branches_with_their_own_parameters(tmp_path: Path) -> None:
    text = DPO + "parameters:\n  loss: {choose: {sigmoid: {beta: [0.05, 0.1]}, ln_dpo: {beta: [2, 5]}}}\nmethod: grid\n"
    loaded = load(tmp_path, text)
    assert loaded.space.size == 4
    found = [loaded.resolve(loaded.space.replay(choices))["loss"] for choices in loaded.space.grid()]
    assert [(loss["type"], loss["beta"]) for loss in found] == [
        ("sigmoid", 0.05),
        ("sigmoid", 0.1),
        ("ln_dpo", 2.0),
        ("ln_dpo", 5.0),
    ]


def test_a_parameter_of_a_bare_word_is_swept(tmp_path: Path) -> None:
    text = DPO + "parameters: {loss.beta: [0.05, 0.1]}\nmethod: grid\n"
    loaded = load(tmp_path, text, ("pipeline.loss=kto",))
    found = [loaded.resolve(loaded.space.replay(choices))["loss"] for choices in loaded.space.grid()]
    assert [(loss["type"], loss["beta"]) for loss in found] == [("kto", 0.05), ("kto", 0.1)]


def test_losses_are_a_plain_choice_too(tmp_path: Path) -> None:
    loaded = load(tmp_path, DPO + "parameters: {loss: [sigmoid, kto]}\nmethod: grid\n")
    found = [loaded.resolve(loaded.space.replay(choices))["loss"]["type"] for choices in loaded.space.grid()]
    assert found == ["sigmoid", "kto"]


@pytest.mark.parametrize(
    ("line", "place", "message"),
    [
        ("loss: sigmod", "pipeline.loss.type", "did you mean 'sigmoid'"),
        ("loss: {type: sigmoid, gamma: 1}", "pipeline.loss.gamma", "is unknown"),
        ("loss: dpo", "pipeline.loss.type", "DPO's own loss is 'sigmoid' here"),
        ("loss: {type: robust, label_smoothing: 0.5}", "pipeline.loss.label_smoothing", "less than 0.5"),
        ("rl_beta: 0.1", "pipeline.rl_beta", "Axolotl's rl_beta is `loss.beta` here"),
        ("pref_loss: orpo", "pipeline.pref_loss", "LLaMA-Factory's pref_loss is `loss` here"),
        ("reference: ./nowhere", "pipeline.reference", "is not there"),
        ("reference: sweep://nowhere/best", "pipeline.reference", "nowhere"),
        ("sample_packing: true", "pipeline.sample_packing", "is unknown"),
    ],
)
def test_mistakes_are_named_where_they_stand(tmp_path: Path, line: str, place: str, message: str) -> None:
    found = problems(tmp_path, DPO.replace("  max_steps", f"  {line}\n  max_steps"))
    assert list(found) == [place]
    assert message in found[place]


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("type: preference", "type: chat", "pipeline.datasets.train.type", "'chat' rows have no rejected answer"),
        ("type: preference", "type: unpaired_preference", "pipeline.datasets.train.type", "write loss: kto"),
        ("type: preference", "type: preference, streaming: true", "pipeline.datasets.train.streaming", "in memory"),
        ("type: dpo", "type: kto", "pipeline.type", "preference tuning is 'dpo' here, with this word as its loss"),
    ],
)
def test_data_must_fit_the_loss(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    found = problems(tmp_path, DPO.replace(old, new, 1))
    assert place in found
    assert message in found[place]


def test_kto_takes_both_kinds_of_rows(tmp_path: Path) -> None:
    for kind in ("preference", "unpaired_preference"):
        load(tmp_path, DPO.replace("type: preference", f"type: {kind}"), ("pipeline.loss=kto",))


def test_sft_imitates_chosen_answers_and_no_labelled_ones(tmp_path: Path) -> None:
    text = DPO.replace("type: dpo", "type: sft").replace("reward_accuracy", "loss")
    load(tmp_path, text)
    found = problems(tmp_path, text.replace("type: preference", "type: unpaired_preference"))
    assert "rows hold bad answers too" in found["pipeline.datasets.train.type"]


def test_only_preference_tuning_has_rewards(tmp_path: Path) -> None:
    text = DPO.replace("type: dpo", "type: sft")
    assert "'reward_accuracy' is unknown" in problems(tmp_path, text)["metric.name"]
    found = problems(tmp_path, text.replace("metric: reward_accuracy", "metric: loss\nevaluate: [preference]"))
    assert "'preference' can't score sft" in found["evaluate[0]"]


def test_loss_and_rewards_always_run(tmp_path: Path) -> None:
    for metric in ("loss", "reward_accuracy", "perplexity"):
        when = load(tmp_path, DPO.replace("metric: reward_accuracy", f"metric: {metric}")).timetable
        for entries in (when.rung, when.final):
            assert {"loss", "preference"} <= {entry["type"] for entry in entries}


def test_a_reference_is_a_path_or_a_source(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config = load(tmp_path, DPO, ("pipeline.reference=./other",)).resolve({})
    assert config["reference"] == str(tmp_path / "other")


def test_learned_and_sparse_soups_are_for_likelihoods(tmp_path: Path) -> None:
    for soup in ("method: learned", "method: sparse, sparsity: 0.5"):
        text = DPO + f"soup: {{{soup}, top: 2}}\nparameters: {{lora_r: [4, 8]}}\nmethod: grid\n"
        found = problems(tmp_path, text)
        assert "soup.method" in found


def test_check_says_what_length_alone_gets_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"question {i}", "chosen": "yes" if i % 4 else "no, never", "rejected": "maybe"} for i in range(200)
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    save_model(tmp_path / "model")
    text = DPO.replace("data/train.jsonl", "pairs.jsonl").replace("HuggingFaceTB/SmolLM2-135M-Instruct", "./model")
    (tmp_path / "sweep.yaml").write_text(text)
    assert cli.main(["check", str(tmp_path / "sweep.yaml"), "--data"]) == 0
    said = capsys.readouterr().out
    assert "lengths  the chosen answer is the longer one in 2" in said
    assert "2 pairs of up to" in said
