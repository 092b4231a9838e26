"""Many workers make the soup that one makes, event by event; a candidate is cut short only where it is hopeless."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soup_machine import SmallMachine, Stage, small_disk

from evaluators.base import ItemSet, summarise
from sweeps import early
from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.loop import CallFailed
from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup

ROWS = 8


class Hand:
    """A call that is done at some time between its start and the asking for its result."""

    def __init__(self, do: Callable[[], Any], at_once: bool) -> None:
        self.do, self.forgotten = do, False
        self.done = [do()] if at_once else []

    def result(self, on_progress: Callable[[str], None] | None = None) -> Any:
        return self.done[0] if self.done else self.do()

    def forget(self) -> None:
        self.forgotten = True


class Hands(SmallMachine):
    """`slots` calls at once, each with a score drawn from a table that is made by `seed`."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        super().__init__()
        self.slots, self.seed, self.begun = slots, seed, 0  # type: ignore[misc]
        self.order = random.Random(seed)
        self.running: list[Hand] = []

    def start(self, function: str, payload: Mapping[str, Any]) -> Hand:  # type: ignore[override]
        self.begun += 1
        self.running = [hand for hand in self.running if not hand.forgotten]
        self.running.append(Hand(lambda: self.call(function, payload), self.order.random() < 0.5))
        return self.running[-1]

    def do(self, function: str, payload: Mapping[str, Any]) -> Any:
        if function == "sweeps.tasting:taste":
            parts = [[Path(folder).parts[-4:], round(w, 6)] for folder, w in payload["merge"]["ingredients"]]
            return {"scores": (self.drawn(json.dumps(parts)),)}
        if function == "sweeps.worker:evaluate" and payload["split"] == "select":
            folder = payload["model"]["adapter"]
            return (self.drawn("final" if "soups" in folder else json.dumps(Path(folder).parts[-4:])),)
        return super().do(function, payload)

    def drawn(self, key: str) -> Any:
        number = int(hashlib.sha256(f"{self.seed} {key}".encode()).hexdigest()[:8], 16)
        value = float("nan") if number % 11 == 0 else round(number % 97 / 97, 1)
        item_set = ItemSet(tuple(f"select-{row}" for row in range(ROWS)))
        return summarise("loss", "select", "minimize", item_set, np.full(ROWS, value))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Stage]:
    made = {}
    for slots in (1, 2, 3, 7):
        made[slots] = Stage(tmp_path_factory.mktemp(f"slots-{slots}"), [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
        made[slots].backend = Hands(slots)
    return made


def soup_events(stage: Stage, after: int) -> list[Any]:
    events = [(event.kind, event.body) for event in stage.ledger.events(after) if event.kind.startswith("soup_")]
    return json.loads(json.dumps(events))


@pytest.mark.parametrize(
    ("method", "barrier"),
    [("greedy", False), ("greedy", True), ("pruned", False), ("uniform", True), ("search", False)],
)
def test_many_workers_make_the_soup_of_one(stages: dict[int, Stage], method: str, barrier: bool) -> None:
    more = {"evaluations": 12} if method == "search" else {}
    ahead = 0
    for seed in range(3 if barrier or method != "greedy" else 12):
        told = {}
        for slots, stage in stages.items():
            machine = stage.backend = Hands(slots, seed)
            after = max(event.seq for event in stage.ledger.events())
            config = parse_soup({"method": method, "top": 6, "barrier": barrier, "seed": seed, **more})
            make_soup(stage.loaded, stage.ledger, stage.paths, machine, config, stage.said.append)
            told[slots] = soup_events(stage, after)
            assert (machine.begun > 0) == (slots > 1)
            ahead += machine.begun if slots > 1 else 0
        assert told[2] == told[1]
        assert told[3] == told[1]
        assert told[7] == told[1]
        kinds = [kind for kind, _ in told[1]]
        assert kinds[-1] == "soup_finished"
    assert ahead


@pytest.mark.parametrize("early", [None, {"block": 4}])
def test_no_candidate_is_scored_twice_because_of_its_path(stages: dict[int, Stage], early: Any) -> None:
    """Paths and trials of the next candidates run at once; what was begun ahead is used when its turn comes."""
    stage = stages[3]
    machine = stage.backend = Hands(3, 0)
    begun: list[str] = []
    plain = machine.start

    def counted(function: str, payload: Mapping[str, Any]) -> Hand:
        begun.append(json.dumps([function, payload["merge"]["ingredients"]] if "merge" in payload else payload))
        return plain(function, payload)

    def equal(key: str) -> Any:
        item_set = ItemSet(tuple(f"select-{row}" for row in range(ROWS)))
        return summarise("loss", "select", "minimize", item_set, np.full(ROWS, 0.5))

    machine.start, machine.drawn = counted, equal  # type: ignore[method-assign]
    config = parse_soup({"method": "greedy", "top": 6, "tie": "reject", "max_drop": 0.5, "early_stop": early})
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, machine, config, stage.said.append)
    assert soup is not None
    assert len(soup.notes) == 5, "every candidate has a path"
    assert len(begun) == len(set(begun))
    mixtures = [body for body in soup.scored if len(body["mixture"]) > 1]
    assert len(begun) > len(mixtures), "mixtures were all begun ahead, and singles"


def test_never_more_calls_at_once_than_slots(stages: dict[int, Stage]) -> None:
    stage = stages[3]
    machine = stage.backend = Hands(3, 5)
    most = [0]
    plain = machine.start

    def counted(function: str, payload: Mapping[str, Any]) -> Hand:
        hand = plain(function, payload)
        waiting = [h for h in machine.running if not h.forgotten and not getattr(h, "asked", False)]
        most[0] = max(most[0], len(waiting))
        return hand

    real = Hand.result

    def result(self: Hand, on_progress: Any = None) -> Any:
        self.forgotten = True
        return real(self, on_progress)

    machine.start = counted  # type: ignore[method-assign]
    Hand.result = result  # type: ignore[method-assign]
    try:
        config = parse_soup({"method": "greedy", "top": 6, "barrier": False, "seed": 77})
        make_soup(stage.loaded, stage.ledger, stage.paths, machine, config, stage.said.append)
    finally:
        Hand.result = real  # type: ignore[method-assign]
    assert most[0] == 3


def test_a_search_goes_on_where_a_mixture_fails_and_greedy_says_why(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.3, 0.4, 0.5])
    count = [0]

    def fail(function: str, payload: Mapping[str, Any]) -> None:
        count[0] += function == "sweeps.tasting:taste"
        if function == "sweeps.tasting:taste" and count[0] % 2:
            raise CallFailed(Failure("oom", "out of memory"))

    stage.backend.fail = fail
    config = parse_soup({"method": "search", "evaluations": 12, "top": 3, "barrier": False})
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)
    assert soup is not None
    failed = [body for body in soup.scored if "failed" in body]
    assert failed
    assert all(body["score"]["value"] is None and body["failed"] == "out of memory" for body in failed)
    assert soup.notes[-1]["failed"] == len(failed)
    with pytest.raises(CallFailed, match="out of memory"):
        make_soup(
            stage.loaded,
            stage.ledger,
            stage.paths,
            stage.backend,
            parse_soup({"barrier": False, "top": 3}),
            stage.said.append,
        )


@pytest.mark.parametrize(
    "message",
    [
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 28] no soup: the disk of /runs is full: the soup needs 400 bytes and 8 are free",
        "OSError: [Errno 122] Disk quota exceeded",
        "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_a_full_disk_leaves_the_old_soup_whole_and_says_so(tmp_path: Path, message: str) -> None:
    stage = Stage(tmp_path, [0.3, 0.4])
    config = {"method": "uniform", "barrier": False, "top": 2}
    first = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, parse_soup(config), stage.said.append)
    assert first is not None
    before = {path: path.read_bytes() for path in stage.paths.soup(first.id).iterdir()}

    tried: list[str] = []

    def full(function: str, payload: Mapping[str, Any]) -> None:
        if function == "pipelines.soups:merge":
            tried.append(function)
            raise CallFailed(Failure("unknown", message))

    stage.backend.fail = full
    again = parse_soup({**config, "seed": 1})
    with pytest.raises(CallFailed) as caught:
        make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, again, stage.said.append)
    assert str(caught.value) == f"soup uniform-2: the disk is full ({message}); soups made before are whole"
    assert len(tried) == 1, "a full disk is not tried again"
    assert not any("full" in line for line in stage.said), "whoever drives says it, once"
    assert {path: path.read_bytes() for path in stage.paths.soup(first.id).iterdir()} == before
    stage.backend.fail = lambda function, payload: None
    resumed = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, again, stage.said.append)
    assert resumed is not None
    assert resumed.id == "uniform-2"
    assert resumed.finished is not None


def test_a_disk_that_fills_up_under_a_soup(tmp_path: Path) -> None:
    """A real one, filled while the weights are written; with room again the soup is that of a disk that never was full."""
    config = parse_soup({"method": "uniform", "barrier": False, "top": 2})
    calm_folder = tmp_path / "calm"
    calm_folder.mkdir()
    calm = Stage(calm_folder, [0.3, 0.4])
    assert make_soup(calm.loaded, calm.ledger, calm.paths, calm.backend, config) is not None
    with small_disk(tmp_path / "disk", "4m") as disk:
        stage = Stage(disk, [0.3, 0.4])
        first = parse_soup({"method": "uniform", "barrier": False, "top": 2, "seed": 5})
        made = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, first)
        assert made is not None
        before = {path: path.read_bytes() for path in stage.paths.soup(made.id).iterdir()}
        filler = disk / "filler"

        def fill(function: str, payload: Mapping[str, Any]) -> None:
            if function == "pipelines.soups:merge":
                filler.write_bytes(b"0" * (shutil.disk_usage(disk).free - 4096))

        stage.backend.fail = fill
        with pytest.raises(CallFailed, match=r"soup uniform-2: the disk is full .* soups made before are whole"):
            make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config)
        assert {path: path.read_bytes() for path in stage.paths.soup(made.id).iterdir()} == before
        filler.unlink()
        stage.backend.fail = lambda function, payload: None
        again = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config)
        assert again is not None
        assert again.finished is not None
        weights = [
            one.soup(name) / "adapter_model.safetensors"
            for one, name in ((calm.paths, "uniform-1"), (stage.paths, "uniform-2"))
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        stage.ledger.drop()


def test_an_unsound_run_is_left_out_with_its_reason(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.3, 0.4, 0.5])
    stage.backend.unsound = {stage.runs[0]: "it holds NaN"}
    config = parse_soup({"barrier": False, "top": 3})
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)
    assert soup is not None
    assert soup.finished is not None
    assert stage.runs[0] not in dict(soup.finished["ingredients"])
    decision = next(body for body in soup.decisions if body["run"] == stage.runs[0])
    assert (decision["decision"], decision["reason"], decision["score"]) == ("reject", "it holds NaN", None)


def test_a_soup_of_an_older_ledger_is_known(tmp_path: Path) -> None:
    """Events as the version before wrote them: `tie` and no settings, plain mixtures, no answers."""
    stage = Stage(tmp_path, [0.3, 0.4])
    config = parse_soup({"top": 2})
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, parse_soup({"top": 2, "barrier": False}))
    assert soup is not None
    other = tmp_path / "older"
    other.mkdir()
    old = Stage(other, [0.3, 0.4])
    for event in stage.ledger.events():
        if event.kind.startswith("soup_") and event.kind != "soup_answered":
            body = {key: value for key, value in event.body.items() if key != "settings"}
            old.ledger.append([Event(event.kind, {**body, "tie": "accept"} if event.kind == "soup_started" else body)])
    shutil.copytree(stage.paths.soup(soup.id), old.paths.soup(soup.id))
    found = make_soup(old.loaded, old.ledger, old.paths, old.backend, config)
    assert found is not None
    assert found.id == soup.id
    assert found.finished == soup.finished
    assert old.backend.count("sweeps.tasting:taste") == 0


def test_a_barriers_error_is_that_of_the_rows_own_rises(tmp_path: Path) -> None:
    """What a path's note says is what the stored items of its knots say, and a soup of an older version goes on without."""
    from evaluators.statistics import contrast

    stage = Stage(tmp_path, [0.3, 0.4])
    config = parse_soup({"top": 2})
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config)
    assert soup is not None
    note = next(note for note in soup.notes if note["what"] == "path")
    steps = {json.dumps(body["mixture"]): body["step"] for body in soup.scored}
    weights = {note["from"][0]: 1 - note["at"], note["run"]: note["at"]}
    sides = [(1.0, list(map(list, weights.items())))] + [(-weight, [[run, 1.0]]) for run, weight in weights.items()]
    stored = [
        (factor, stage.ledger.items(f"soup/{soup.id}/{steps[json.dumps(mixture)]}", 0, "loss", "select"))
        for factor, mixture in sides
    ]
    found = contrast([(factor, one.values) for factor, one in stored if one], stored[0][1].item_set)  # type: ignore[union-attr]
    assert note["se"] == pytest.approx(found.se)
    assert note["allowed"] == pytest.approx(2 * found.se, rel=0.01)
    alone = [body["score"]["se"] for body in soup.scored if len(body["mixture"]) == 1]
    assert note["se"] < min(alone)

    other = tmp_path / "older"
    other.mkdir()
    old = Stage(other, [0.3, 0.4])
    for event in [event for event in stage.ledger.events() if event.kind.startswith("soup_")]:
        body = {key: value for key, value in event.body.items() if key != "se"}
        if event.kind == "soup_noted":
            old.ledger.append([Event(event.kind, {**body, "allowed": 2 * max(alone), "at": 1.0})])
            break
        old.ledger.append([Event(event.kind, body)])
    resumed = make_soup(old.loaded, old.ledger, old.paths, old.backend, config)
    assert resumed is not None
    assert resumed.finished is not None
    assert len(old.bodies("soup_noted")) == 1


def item_set(rows: int, weights: bool) -> ItemSet:
    generator = np.random.default_rng(0)
    given = tuple(float(w) for w in generator.integers(3, 30, rows)) if weights else None
    return ItemSet(tuple(map(str, range(rows))), given, tuple(str(row // 2) for row in range(rows)))


def cut(items: Any, beat: Any, whole: ItemSet, block: int, alpha: float, seed: int) -> int | None:
    """After how many rows the candidate is cut short; None where it is scored to the end."""
    order = early.shuffled(list(whole.groups or ()), seed)
    looks = max(1, -(-len(order) // block) - 1)
    for end in range(block, len(order), block):
        seen = np.sort(order[:end])
        part = ItemSet(
            tuple(whole.ids[i] for i in seen),
            tuple(whole.weights[i] for i in seen) if whole.weights else None,
            tuple((whole.groups or ())[i] for i in seen),
        )
        if early.hopeless(items[seen], beat[seen], part, len(order), alpha / looks, "minimize") is not None:
            return end
    return None


@pytest.mark.parametrize("kind", ["normal", "skewed", "shares"])
def test_early_stops_are_rarely_wrong_and_often_right(kind: str) -> None:
    """Candidates that all rows together find exactly as good as the best are cut short with probability alpha at most."""
    generator = np.random.default_rng(7)
    rows, alpha, wrong, right, tried = 200, 0.05, 0, 0, 150
    whole = item_set(rows, weights=kind != "shares")
    w = np.asarray(whole.weights or [1.0] * rows)
    for seed in range(tried):
        if kind == "shares":
            difference = generator.choice([-1.0, 0.0, 1.0], rows, p=[0.15, 0.7, 0.15])
            difference -= 0.0
        elif kind == "skewed":
            difference = generator.lognormal(0, 1.2, rows) - 1.5
        else:
            difference = generator.normal(0, 1, rows)
        if kind != "shares":
            difference -= (w * difference).sum() / w.sum()
        elif difference.sum() > 0:
            difference = -difference
        beat = generator.normal(2, 1, rows)
        wrong += cut(beat + difference, beat, whole, 25, alpha, seed) is not None
        right += cut(beat + difference + 1.0 * difference.std(), beat, whole, 25, alpha, seed) is not None
    assert wrong <= alpha * tried + 3 * math.sqrt(alpha * (1 - alpha) * tried)
    assert right > 0.8 * tried


def test_a_single_run_moved_toward_the_base_is_another_model(tmp_path: Path) -> None:
    from sweeps.candidates import same_models
    from sweeps.fold import fold

    stage = Stage(tmp_path, [0.3, 0.4])
    run = stage.runs[0]
    candidates = [{"role": "winner", "run": run}, {"role": "soup", "soup": "greedy-1"}]
    stage.ledger.append(
        [
            Event("soup_started", {"soup": "greedy-1", "method": "greedy", "metric": "select/loss", "ingredients": []}),
            Event("final_frozen", {"candidates": candidates}),
        ]
    )
    done = {"soup": "greedy-1", "ingredients": [[run, 1.0]], "folder": "f", "score": None, "hash": "h", "reason": ""}
    for more, same in (
        ({}, {"soup": "winner"}),
        ({"scale": 0.5}, {}),
        ({"rank": 2}, {}),
        ({"made": {"rank": 5}}, {"soup": "winner"}),
    ):
        stage.ledger.append([Event("soup_finished", {**done, **more})])
        assert same_models(fold(stage.ledger.events())) == same


def test_the_real_worker_stops_a_hopeless_candidate_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`taste` with a pipeline that answers from a table: a hopeless candidate is scored in part, a good one in whole."""
    from pipelines.stage import Devices
    from sweeps import tasting, worker

    rows = [{"prompt": f"question {row}", "completion": "answer"} for row in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = {"train": {"path": str(tmp_path / "rows.jsonl"), "type": "prompt_completion"}, "select": {"fraction": 0.5}}
    config = {"type": "sft", "base_model": "org/model", "datasets": data, "max_steps": 1}
    seen: list[int] = []

    class Answers:
        blends = True
        worse = 0.0

        def evaluate(self, job: Any) -> Any:
            seen.append(len(job.rows))
            names = tuple(row.id for row in job.rows)
            values = [1.0 + self.worse + 0.1 * (int(name[:2], 16) % 5) for name in names]
            return (summarise("loss", "select", "minimize", ItemSet(names), values),)

    answers = Answers()
    monkeypatch.setattr(tasting.WARM, "get", lambda config, devices: answers)
    monkeypatch.setattr(worker, "_SETUP", [worker.Setup(Devices(), str(tmp_path))])
    from pipelines.config import parse_pipeline
    from pipelines.splits import load_splits

    typed = parse_pipeline(config)
    select = load_splits(typed.datasets, 0).rows("select")  # type: ignore[union-attr]
    items = [1.0 + 0.1 * (int(row.id[:2], 16) % 5) + 0.05 * (int(row.id[2:4], 16) % 3 - 1) for row in select]
    payload = {
        "config": config,
        "split": "select",
        "evaluators": [{"type": "loss"}],
        "averaged": True,
        "merge": {"ingredients": [["a", 1.0]], "out": str(tmp_path / "out")},
        "early": {"metric": "select/loss", "block": 25, "alpha": 0.001, "seed": 0, "items": items},
    }
    answers.worse = 0.5
    answer = tasting.taste(payload)
    assert answer["seen"] == sum(seen) < len(select)
    assert answer["worse_by"] == pytest.approx(0.5, abs=0.05)
    seen.clear()
    answers.worse = -0.001
    answer = tasting.taste(payload)
    assert "seen" not in answer
    assert sum(seen) == len(select) == answer["scores"][0].n
    assert answer["scores"][0].item_set.ids == tuple(row.id for row in select)
