"""What ran out of memory is remembered: for whom, with which micro batch, in which words, and through a kill."""

import random

import pytest
from plans import backend, plan
from test_engine import Hand
from test_engine_resume import facts

from pipelines.config import PIPELINE_CONFIGS
from sweeps.failures import Failure
from sweeps.fitting import FREE, GROWS, TooLarge, lowered, needs_as_much
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.news import News
from sweeps.replay import differences
from sweeps.simulate import Killed, drive, kill_at
from sweeps.space import Axis, Choice, Space

BASE = {
    "type": "sft",
    "base_model": "m",
    "adapter": "lora",
    "lora_r": 8,
    "lora_target_modules": ["q_proj"],
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "sequence_len": 256,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "loss": {"type": "sigmoid", "beta": 0.1},
    "gradient_checkpointing": True,
}


def with_(**changed):
    return {**BASE, **changed}


@pytest.mark.parametrize(
    ("changed", "as_much"),
    [
        ({}, True),
        ({"learning_rate": 1.0, "max_steps": 7}, True),
        ({"sequence_len": 512, "micro_batch_size": 16, "lora_r": 64}, True),
        ({"gradient_accumulation_steps": 4}, True),
        ({"lora_target_modules": "all-linear"}, True),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, True),
        ({"gradient_checkpointing": False}, True),
        ({"use_dora": True}, True),
        ({"loss": {"type": "sigmoid", "beta": 0.5}}, True),
        ({"loss": {"type": "simpo", "beta": 0.1}}, False),
        ({"sequence_len": 255}, False),
        ({"micro_batch_size": 4}, False),
        ({"lora_r": 4}, False),
        ({"lora_target_modules": ["v_proj"]}, False),
        ({"base_model": "n"}, False),
        ({"precision": "bf16"}, False),
        ({"adapter": "none"}, False),
        ({"a_key_of_the_future": 1}, False),
    ],
)
def test_who_needs_at_least_as_much(changed, as_much):
    assert needs_as_much(with_(**changed), BASE) is as_much


def test_long_accumulation_adds_no_more_than_a_short_one():
    assert needs_as_much(with_(gradient_accumulation_steps=2), with_(gradient_accumulation_steps=8))
    assert not needs_as_much(BASE, with_(gradient_accumulation_steps=2))


def test_the_keys_are_those_of_pipelines():
    known = {name for config in PIPELINE_CONFIGS for name in config.model_fields}
    assert known >= FREE | GROWS
    assert not FREE & GROWS


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (BASE, {"micro_batch_size": 4, "gradient_accumulation_steps": 2}),
        (with_(micro_batch_size=12), {"micro_batch_size": 4, "gradient_accumulation_steps": 3}),
        (with_(micro_batch_size=9, gradient_accumulation_steps=2), {"micro_batch_size": 3, "gradient_accumulation_steps": 6}),
        (with_(sequence_len=128), None),
        ({"kwargs": {}}, None),
    ],
)  # fmt: skip
def test_the_rows_of_a_step_stay_the_same(config, changes):
    found = lowered(config, [TooLarge("0000-a/seed-0", BASE, 4)])
    assert (found and found.changes) == changes


def test_the_smallest_that_was_gone_on_with_counts():
    failed = [TooLarge("a", BASE, 4), TooLarge("b", with_(micro_batch_size=4, gradient_accumulation_steps=2), 2)]
    assert lowered(with_(gradient_accumulation_steps=2), failed).changes["micro_batch_size"] == 2
    assert not needs_as_much(BASE, failed[1].config)  # b had gradients beside its activations
    found = lowered(BASE, failed)  # as it will have, once it has fewer rows
    assert (found.after, found.at) == ("b", 4)
    assert found.changes == {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


LENGTHS = Space(
    (
        Axis("sequence_len", "sequence_len", Choice((256, 128, 512))),
        Axis("learning_rate", "learning_rate", Choice((1, 2))),
    )
)


def memory(lease, resource=0):
    """512 tokens at once fit, so that micro batches of 2, 4 and 1 do."""
    fits = lease.config["micro_batch_size"] * lease.config["sequence_len"] <= 512
    return None if fits else Failure("oom", f"out of memory with {lease.config['micro_batch_size']} rows")


def curve(config, resource, seed=0):
    return 1.0 / resource + config["learning_rate"] / config["sequence_len"]


def test_later_trials_begin_with_what_fits_and_it_is_said(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=6, total=9, first=9, method="grid", space=LENGTHS))
    began = []
    while (lease := hand.engine.ask()) is not None:
        began.append((lease.config["sequence_len"], lease.config["micro_batch_size"], lease.attempt.n))
        if (failure := memory(lease)) is not None:
            hand.engine.failed(lease.id, failure)
        else:
            hand.finish(lease, 9)
    assert began == [
        (256, 4, 0), (256, 2, 1), (256, 2, 0), (128, 4, 0), (128, 4, 0), (512, 2, 0), (512, 1, 1), (512, 1, 0),
    ]  # fmt: skip
    rows = [lease["changes"] for lease in (e.body for e in hand.ledger.events() if e.kind == "lease_started")]
    assert rows[-1] == {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    first = next(iter(hand.engine.state.trials))
    told = [event.body for event in hand.ledger.events() if event.kind == "adjusted"]
    assert [body["after"].partition("-")[0] for body in told] == ["0000", "0000", "0004"]
    assert told[0]["reason"] == f"{first}/seed-0 needs no more and ran out of memory at micro_batch_size 4"
    assert differences(hand.sweep, hand.ledger.events()) == []
    news = News()
    for event in hand.ledger.events():
        news.apply(event)
    assert any(
        item.text.startswith("0001 begins with micro_batch_size 2, gradient_accumulation_steps 2: ")
        for item in news.items
    )


def test_the_replay_check_sees_a_trial_that_began_too_large(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=2, total=9, first=9, method="grid", space=LENGTHS))
    hand.engine.failed(hand.engine.ask().id, Failure("oom", "full"))
    hand.finish(hand.engine.ask(), 9)
    hand.finish(hand.engine.ask(), 9)
    events = [event for event in hand.ledger.events() if event.kind != "adjusted"]
    for event in events:
        if event.kind == "lease_started":
            event.body["changes"] = None
    assert any("begins larger than" in line for line in differences(hand.sweep, events))


def test_a_file_that_stops_at_out_of_memory_lowers_nothing(tmp_path):
    policy = {"oom": "stop", "abort_after_same_error": 9}
    hand = Hand(tmp_path / "s", plan(trials=2, total=9, method="grid", space=LENGTHS, on_failure=policy))
    leases = []
    while (lease := hand.engine.ask()) is not None:
        leases.append(lease)
        hand.engine.failed(lease.id, Failure("oom", "full"))
    assert [lease.changes for lease in leases] == [None, None]


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_sweep_lowers_as_an_uninterrupted_one(tmp_path, seed):
    sweep, choice = plan(trials=6, total=9, first=3, method="grid", space=LENGTHS), random.Random(seed)
    drive(sweep, tmp_path / "plain", backend(tmp_path / "plain", of=curve, faults=memory))
    appends = len({e.time for e in Ledger.read(tmp_path / "plain").events()})
    root = tmp_path / "killed"
    simulated = backend(root, of=curve, faults=memory)
    for _ in range(1 + seed % 3):
        try:
            drive(sweep, root, simulated, kill_at(choice.randrange(appends), choice.random() < 0.5))
        except Killed:
            continue
    drive(sweep, root, simulated)
    assert facts(root) == facts(tmp_path / "plain")
    assert differences(sweep, Ledger.read(root).events()) == []
    runs = [fold(Ledger.read(place).events()).runs for place in (root, tmp_path / "plain")]
    assert [run.changes for run in runs[0].values()] == [run.changes for run in runs[1].values()]
    assert any(run.adjusted for run in runs[0].values())
