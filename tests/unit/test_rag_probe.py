"""The latency probe: questions one by one, nothing from the memo, and no time that only loading takes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rag_asking import QUESTIONS, TEXTS, CountingHost

from pipelines.calls import Answers
from pipelines.memo import LocalMemo
from pipelines.rag import retrieve
from pipelines.rag.probe import probe, summed
from pipelines.stage import Devices, Services
from sweeps import probing
from sweeps.events import Event
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ledger
from sweeps.load import load_text

LOADING = 1.0


class ColdHost(CountingHost):
    """Its first answer takes as long as a model takes to load."""

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        if not self.asked:
            time.sleep(LOADING)
        return super().ask(spec, method, items, parameters)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pages").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "pages" / f"{number}.md").write_text(text)
    rows = [{"id": str(i), "question": asked, "documents": ["0.md"]} for i, asked in enumerate(QUESTIONS[:4])]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "type": "rag",
        "corpus": str(tmp_path / "pages"),
        "questions": {"path": str(tmp_path / "questions.jsonl")},
        "chunk": {"type": "fixed_characters", "size": 400},
        "retrieve": {"type": "dense", "embedding_model": "wordllama", "top_k": 2},
    }


def measured(config: Mapping[str, Any], host: CountingHost, memo: LocalMemo) -> dict[str, Any]:
    services = Services(memo=lambda: memo, hosts=lambda: host)
    return probe(config, services, Devices(), questions=3)


def test_a_model_that_the_memo_had_kept_from_loading_is_loaded_before_the_clock_runs(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with LocalMemo(tmp_path / "memo") as memo:
        measured(config, CountingHost(), memo)
        cold = ColdHost()
        found = measured(config, cold, memo)
    assert found["n"] == 3
    assert found["p95"] < LOADING / 2
    asked = [items for method, items in cold.asked if method == "embed"]
    assert asked[0] == asked[1]
    assert [len(items) for items in asked] == [1] * 4
    assert len({items[0] for items in asked[1:]}) == 3


def test_a_new_process_takes_the_passages_vectors_from_the_memo(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalMemo(tmp_path / "memo") as memo:
        monkeypatch.setattr(retrieve, "_KEPT", {})
        first = CountingHost()
        measured(config, first, memo)
        assert sum(len(items) for method, items in first.asked if method == "embed" and len(items) > 1) == len(TEXTS)
        monkeypatch.setattr(retrieve, "_KEPT", {})
        again = CountingHost()
        measured(config, again, memo)
    assert [len(items) for method, items in again.asked if method == "embed"] == [1] * 4


def test_the_baseline_is_probed_once_like_the_best_trials(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, questions = config["corpus"], config["questions"]["path"]
    loaded = load_text(
        f"name: probed\npipeline: {{type: rag, corpus: {corpus}, questions: {questions}, "
        "chunk: {type: fixed_characters, size: 400}, retrieve: {type: bm25}}\nparameters: {chunk.size: [100, 200]}\n"
        "method: grid\nmetric: document_recall\nbaseline: {chunk.size: 50}\n".encode(),
        tmp_path,
    )
    asked: list[Any] = []

    def answer(loaded: Any, backend: Any, function: str, payload: Mapping[str, Any], *more: Any) -> dict[str, Any]:
        asked.append(payload["config"]["chunk"]["size"])
        return {"n": 3, "p50": 0.5, "p95": 0.75, "stages": {}}

    monkeypatch.setattr(probing, "call", answer)
    monkeypatch.setattr(probing, "ranked", lambda loaded, state: [])
    said: list[str] = []
    ledger = Ledger.create(tmp_path / "sweep")
    try:
        for _ in range(2):
            probing.probe_latency(loaded, ledger, SimpleNamespace(), said.append)  # type: ignore[arg-type]
        ledger.append(
            [Event("final_frozen", {"candidates": [{"role": "baseline", "config": {}, "reason": "size=50"}]})]
        )
        [row] = leaderboard(fold(ledger.events()), ledger, loaded).rows
    finally:
        ledger.close()
    assert asked == [50]
    assert said[-1].startswith("latency of the baseline: 0.5 s a question")
    assert row.latency is not None
    assert row.latency["p95"] == 0.75


def test_quantiles_are_of_whole_questions_and_of_each_stage() -> None:
    found = summed([{"retrieve": 1.0, "generate": 3.0}, {"retrieve": 2.0, "generate": 2.0}, {"retrieve": 3.0}])
    assert (found["n"], found["p50"]) == (3, 4.0)
    assert found["stages"]["generate"]["p50"] == 2.0
    assert summed([]) == {"n": 0, "p50": None, "p95": None, "stages": {}}
