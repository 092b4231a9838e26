"""`judge:` from the sweep file to the score: what the door says of it, and who asks it."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint

from evaluators.answers import JudgeRequest
from evaluators.base import Generation
from evaluators.config import FaithfulnessConfig
from pipelines.calls import Calls
from pipelines.chat import pack
from pipelines.memo import Cost, LocalMemo, Unanswered
from pipelines.rag.judging import build_judge
from pipelines.rag.pipeline import RagPipeline
from pipelines.stage import EvaluationJob, ModelSource, Services
from sweeps import cli
from sweeps.cards import card_line, cards_of, newest_card, subject_of, write_card
from sweeps.cli import main
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, from_record, load_text
from sweeps.problems import SpecError
from sweeps.report.record import report_record

JUDGE = "judge: {type: openai, base_url: http://127.0.0.1:9/v1, model: big%s}"
GENERATE = "generate: {type: openai, base_url: http://127.0.0.1:9/v1, model: small}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handbook").mkdir()
    for name, text in (("lift", "The lift is tested every Monday."), ("pump", "The pump is tested on Friday.")):
        (tmp_path / "handbook" / f"{name}.md").write_text(text)
    rows = [{"id": f"q{i}", "question": f"When is the lift tested, {i}?", "answer": "Monday"} for i in range(60)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    return tmp_path


def text(metric: str, rest: str = "", pipeline: str = GENERATE) -> bytes:
    return f"""
name: handbook
storage: runs
pipeline:
  type: rag
  corpus: handbook
  questions: questions.jsonl
  chunk: {{type: fixed_characters}}
  retrieve: {{type: bm25}}
  {pipeline}
metric: {metric}
{rest}
""".encode()


def refusal(source: bytes, folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_text(source, folder)
    return "\n".join(f"{problem.place}: {problem.message}" for problem in caught.value.problems)


def card(
    loaded: LoadedSweep,
    spearman: float | None,
    made_at: str = "2026-01-01T00:00:00",
    data: str = "a",
    interval: list[float | None] | None = None,
) -> None:
    around: list[float | None] = [None, None] if spearman is None else [spearman - 0.1, spearman + 0.1]
    subject = subject_of("faithfulness", FaithfulnessConfig(), loaded.spec)
    write_card(
        loaded.paths.root.parent,
        {
            "format": 1,
            "subject": subject,
            "data": {"file": "labels.jsonl", "hash": data, "limit": None},
            "label": "overall",
            "spearman": spearman,
            "spearman_interval": interval or around,
            "ceiling": 0.7,
            "n": 280,
            "coverage": 0.9,
            "made_at": made_at,
        },
    )


def test_a_judged_evaluator_needs_a_judge(folder: Path) -> None:
    assert "'faithfulness' asks a judge; write judge: {type: openai" in refusal(text("faithfulness"), folder)
    found = refusal(text("token_f1", "evaluate: [{type: context_recall}]"), folder)
    assert "evaluate" in found
    assert "'context_recall' asks a judge" in found
    assert load_text(text("faithfulness", JUDGE % ""), folder).judge is not None
    assert load_text(text("token_f1"), folder).judge is None


def test_a_local_judge_is_placed_and_travels_with_the_sweep(folder: Path) -> None:
    loaded = load_text(text("faithfulness", "judge: {type: local, base_model: ./model}"), folder)
    assert loaded.judge is not None
    assert loaded.judge["base_model"] == str(folder / "model")
    assert from_record(json.loads(json.dumps(loaded.record()))).judge == loaded.judge
    found = refusal(text("faithfulness", "judge: {type: local, base_model: ./modle}"), folder)
    assert "judge.base_model" in found
    assert "did you mean 'model'" in found


def test_a_judge_has_something_to_judge(folder: Path) -> None:
    source = (
        b"name: x\npipeline: {type: custom, import_path: 'json:loads', total: 1, metrics: {a: minimize}}\nmetric: a\n"
    )
    assert "custom asks none; delete judge" in refusal(source + (JUDGE % "").encode(), folder)


def test_a_metric_that_did_not_earn_it_decides_nothing(folder: Path) -> None:
    source = text("faithfulness", JUDGE % ", min_spearman: 0.5")
    found = refusal(source, folder)
    assert "judge.min_spearman" in found
    assert "no card of this judge" in found
    assert "stockpot evaluate-judge --metric faithfulness --on LABELS.jsonl --judge SWEEP.yaml" in found
    loaded = load_text(source, folder, gated=False)
    card(loaded, 0.31)
    assert "Spearman 0.31 (n=280, labels.jsonl), below 0.5" in refusal(source, folder)
    card(loaded, None, "2026-01-02T00:00:00")
    assert "has no Spearman with people (90% of the answers scored, n=280, labels.jsonl)" in refusal(source, folder)
    card(loaded, 0.9, "2026-01-03T00:00:00", interval=[-0.1, 1.0])
    assert "Spearman 0.90 (-0.10 to 1.00, n=280, labels.jsonl), which so few answers do not show" in refusal(
        source, folder
    )
    card(loaded, 0.9, "2026-01-04T00:00:00", interval=[None, None])
    assert "Spearman 0.90 (no interval, n=280" in refusal(source, folder)
    card(loaded, 0.5, "2026-01-05T00:00:00", data="b")
    assert load_text(source, folder).metric == "tune/faithfulness"
    other = text("faithfulness", JUDGE % "ger, min_spearman: 0.5")
    assert "no card of this judge" in refusal(other, folder)
    paid = text("faithfulness", JUDGE % ", min_spearman: 0.4, retries: 9")
    assert load_text(paid, folder).judge is not None
    assert load_text(text("token_f1", JUDGE % "ger, min_spearman: 0.5"), folder).metric == "tune/token_f1"


def test_a_judge_that_gives_no_verdict_gets_a_card_that_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"Q{i}?", "answer": "Monday", "contexts": ["It is tested on Monday."], "label": i % 2}
        for i in range(4)
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeEndpoint(lambda body: "I think so.").serving() as server:
        judge = f"judge: {{type: openai, base_url: {server.address}, model: talker, retries: 0, min_spearman: 0.5}}"
        (folder / "sweep.yaml").write_bytes(text("faithfulness", judge))
        words = ["evaluate-judge", "--metric", "faithfulness", "--on", str(folder / "labels.jsonl")]
        words += ["--judge", str(folder / "sweep.yaml")]
        server.always = 500
        assert main(words) == 2
        assert "faithfulness could score none of the 4 answers" in capsys.readouterr().err
        server.always = None
        assert main(words) == 0
    said = capsys.readouterr().out
    assert "faithfulness by talker against people on labels.jsonl, 0% of the answers scored" in said
    assert "label  0  none" in said
    assert "lacks the verdicts that the metric needs" in said
    source = (folder / "sweep.yaml").read_bytes()
    assert "has no Spearman with people (0% of the answers scored, n=0, labels.jsonl)" in refusal(source, folder)


def test_a_torn_card_is_no_card(folder: Path) -> None:
    loaded = load_text(text("faithfulness", JUDGE % ""), folder)
    subject = subject_of("faithfulness", FaithfulnessConfig(), loaded.spec)
    assert newest_card(loaded.paths.root.parent, subject) is None
    card(loaded, 0.6)
    [place] = loaded.paths.cards.iterdir()
    found = newest_card(loaded.paths.root.parent, subject)
    assert found is not None
    assert card_line(found) == (
        "faithfulness against people: Spearman 0.60 (0.50 to 0.70), people among themselves 0.70, n=280, 90% scored "
        "(labels.jsonl, overall)"
    )
    place.write_text(place.read_text()[:40])
    assert newest_card(loaded.paths.root.parent, subject) is None


@pytest.mark.parametrize("metric", ["faithfulness", "token_f1"])
def test_a_card_stands_beside_its_metric_wherever_it_is_shown(
    metric: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_text(text(metric, (JUDGE % "") + "\nevaluate: [{type: faithfulness}]"), folder)
    paths = loaded.paths
    ledger = Ledger.create(paths.root, durable=False)
    ledger.append([Event("sweep_created", {"name": "handbook", "spec": loaded.record()})])
    ledger.close()
    paths.resolved_spec.write_text(json.dumps(loaded.record()))
    assert report_record(paths)["cards"] == []
    card(loaded, 0.6)
    [found] = cards_of(loaded, paths.root.parent)
    [shown] = report_record(paths)["cards"]
    assert (shown["metric"], shown["spearman"], shown["spearman_interval"]) == ("faithfulness", 0.6, [0.5, 0.7])
    assert shown["line"] == card_line(found)
    assert cli.main(["show", str(paths.root)]) == 0
    assert card_line(found) in capsys.readouterr().out.splitlines()
    assert cli.main(["show", str(paths.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cards"] == [found]


class ChatHost:
    """Says to every prompt what a function makes of it; counts."""

    def __init__(self, say: Any) -> None:
        self.say = say
        self.asked: list[tuple[Any, str, Any, Any]] = []

    def ask(self, spec: Any, method: str, items: Any, parameters: Any) -> Any:
        self.asked += [(spec, method, item, parameters) for item in items]
        return [(self._one(item["messages"][0]["content"]), Cost(1.0, 10)) for item in items]

    def _one(self, prompt: str) -> bytes | Unanswered:
        said = self.say(prompt)
        return Unanswered("gone") if said is None else pack(Generation(said, 5, 5))


CONFIG = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "big", "min_spearman": 0.5}


def test_a_judge_is_asked_greedily_once_under_its_role(tmp_path: Path) -> None:
    host = ChatHost(lambda prompt: None if prompt == "b" else prompt.upper())
    with LocalMemo(tmp_path) as memo:
        calls = Calls(host, memo, "me")
        judge = build_judge(CONFIG, calls)
        requests = [
            JudgeRequest("useful/1", "a", 70),
            JudgeRequest("useful/1", "b", 70),
            JudgeRequest("useful/1", "a", 70),
        ]
        assert judge.ask(requests) == ["A", None, "A"]
        assert judge.ask(requests[:1]) == ["A"]
    assert [item["messages"][0]["content"] for _, _, item, _ in host.asked].count("a") == 1
    spec, method, item, parameters = host.asked[0]
    assert (spec["kind"], spec["role"], method) == ("openai_chat", "judge", "generate")
    assert item["max_new_tokens"] == 70
    assert parameters["temperature"] == 0
    assert (calls.usage["judge"].calls, calls.usage["judge"].unanswered) == (4, 1)
    assert judge.name == "big at http://127.0.0.1:9/v1"


def test_a_trial_asks_the_judge_of_its_sweep(folder: Path) -> None:
    def say(prompt: str) -> str:
        return json.dumps({"verdict": int("Monday." in json.loads(prompt.rpartition("Input: ")[2])["passage"])})

    host = ChatHost(say)
    loaded = load_text(text("context_precision", JUDGE % "", "generate: {type: none}"), folder)
    job = EvaluationJob(
        loaded.resolve({}),
        ModelSource("none"),
        "tune",
        loaded.timetable.rung,
        services=Services(hosts=lambda: host),
        judge=loaded.judge,
    )
    [score] = RagPipeline().evaluate(job)
    assert (score.key, score.n, score.unscored) == ("tune/context_precision", 60, 0)
    assert score.value == 1.0
    assert {spec["role"] for spec, *_ in host.asked} == {"judge"}
