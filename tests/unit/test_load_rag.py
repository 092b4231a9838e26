"""A RAG sweep file at the door: what it may say, what it is pinned to, and what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import RagConfig
from sweeps import cli
from sweeps.data import check_data, refuse_changed_data
from sweeps.describe import describe
from sweeps.load import from_record, load_text
from sweeps.problems import SpecError

TEXT = "The lift is tested every Monday. The pump is tested on Friday.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "tests.md").write_text(TEXT)
    rows = [
        {
            "id": f"q{i}",
            "question": f"When is the lift tested, {i}?",
            "answer": "Monday",
            "spans": [{"document": "tests.md", "start": 0, "end": 32, "text": TEXT[:32]}],
        }
        for i in range(60)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def text(*, pipeline: str = "", rest: str = "", retrieve: str = "{type: bm25}", metric: str = "span_recall") -> bytes:
    return f"""
name: handbook
pipeline:
  type: rag
  corpus: handbook
  questions: questions.jsonl
  chunk: {{type: fixed_characters}}
  retrieve: {retrieve}
{pipeline}
metric: {metric}
{rest}
""".encode()


def problems(source: bytes, folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_text(source, folder)
    return "\n".join(f"{problem.place}: {problem.message}" for problem in caught.value.problems)


def test_a_small_file_is_whole(folder: Path) -> None:
    loaded = load_text(text(), folder)
    config = loaded.resolve({})
    assert config["corpus"] == str(folder / "handbook")
    assert (loaded.total, loaded.milestones, loaded.metric) == (60, (60,), "tune/span_recall")
    assert describe(loaded)["pipeline"] == "rag"
    assert [entry["type"] for entry in loaded.timetable.rung] == ["retrieval"]


def test_a_branch_opens_an_arms_parameters(folder: Path) -> None:
    rest = """
parameters:
  chunk.size: [400, 800]
  retrieve:
    choose:
      bm25: {k1: [0.9, 1.2]}
      dense: {embedding_model: [wordllama], store.type: [faiss_flat, chroma]}
method: grid
"""
    loaded = load_text(text(rest=rest), folder)
    assert loaded.space.size == 8
    kinds = {loaded.resolve(loaded.space.replay(choices))["retrieve"]["type"] for choices in loaded.space.grid()}
    assert kinds == {"bm25", "dense"}


def test_a_cut_is_a_metric_and_its_evaluator_reports_it(folder: Path) -> None:
    loaded = load_text(text(metric="span_recall.at_4000_characters"), folder)
    assert loaded.timetable.rung[0]["characters"] == [4000]
    both = load_text(
        text(metric="[span_recall.at_5, span_recall.at_3]", rest="evaluate: [{type: retrieval, k: [10]}]"), folder
    )
    [entry] = both.timetable.rung
    assert sorted(entry["k"]) == [3, 5, 10]
    assert "unknown" in problems(text(metric="span_recall.at_0"), folder)


def test_fine_tuning_metrics_and_evaluators_are_not_for_rag(folder: Path) -> None:
    assert "'loss' is unknown" in problems(text(metric="loss"), folder)
    said = problems(text(rest="evaluate: [perplexity]"), folder)
    assert "'perplexity' can't score rag; it can be" in said
    assert "retrieval" in said


def test_answers_need_a_generator_and_similarity_an_embedding_model(folder: Path) -> None:
    assert "nothing is generated" in problems(text(metric="token_f1"), folder)
    assert "nothing is generated" in problems(text(rest="evaluate: [token_f1]"), folder)
    generate = "  generate: {type: openai, base_url: 'http://127.0.0.1:1/v1', model: m}"
    load_text(text(pipeline=generate, rest="evaluate: [token_f1, exact_match]"), folder)
    said = problems(text(pipeline=generate, rest="evaluate: [answer_similarity]"), folder)
    assert "pipeline.answer_embedding" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus: handbook": "corpus: handbok"}, "did you mean 'handbook'"),
        ({"questions.jsonl": "question.jsonl"}, "did you mean 'questions.jsonl'"),
        ({"{type: bm25}": "{type: dense, embedding_model: ./nowhere}"}, "is not there"),
        ({"{type: bm25}": "{type: dense, embedding_model: 3}"}, "3 is not text"),
        ({"{type: bm25}": "{type: dense, embedding_model: }"}, "is empty; give text"),
        ({"{type: bm25}": "{type: bm25, top_k: 5, context_budget: {characters: 100}}"}, "are both given"),
        ({"{type: bm25}": "{type: bm52}"}, "did you mean 'bm25'"),
        ({"{type: bm25}": "{type: bm25, lambda: 2}"}, "unknown"),
    ],
)
def test_what_is_not_there_or_not_known_is_said(change: dict[str, str], said: str, folder: Path) -> None:
    source = text().decode()
    for before, after in change.items():
        source = source.replace(before, after)
    assert said in problems(source.encode(), folder)


def test_a_swept_model_that_is_not_there_is_said(folder: Path) -> None:
    rest = "parameters: {retrieve: {choose: {dense: {embedding_model: [wordllama, ./nowhere]}}}}"
    assert "is not there" in problems(text(rest=rest), folder)


def test_what_answers_are_scored_by_stands_beside_the_metric(folder: Path) -> None:
    generate = "  generate: {type: openai, base_url: 'http://127.0.0.1:1/v1', model: m}"
    rest = "evaluate: [{type: token_f1, limit: 40}, {type: exact_match, when: final}, {type: retrieval, k: [5]}]"
    assert load_text(text(pipeline=generate, rest=rest), folder).also == ("tune/token_f1",)
    assert load_text(text(pipeline=generate, rest=rest, metric="token_f1"), folder).also == ()


def test_what_trials_are_scored_on_is_shared(folder: Path) -> None:
    assert "all share it" in problems(text(rest="parameters: {corpus: [handbook]}"), folder)
    section = text(rest="parameters: {questions.limit: [10, 20]}").decode()
    section = section.replace("questions: questions.jsonl", "questions: {path: questions.jsonl}")
    assert "all share it" in problems(section.encode(), folder)


def test_a_race_has_its_blocks_and_its_conditions(folder: Path) -> None:
    race = "early_terminate: {type: race, block: 25}\nparameters: {chunk.size: [400, 800]}\n"
    assert load_text(text(rest=f"{race}method: grid"), folder).milestones == (25, 50, 60)
    assert load_text(text(rest=f"{race}method: random\nbudget: {{trials: 2}}"), folder).finalists == 1
    assert "chooses later" in problems(text(rest=f"{race}method: tpe\nbudget: {{trials: 20}}"), folder)
    assert "takes one seed" in problems(text(rest=f"{race}method: grid\nseeds: {{tune: [0, 1]}}"), folder)
    assert "name one metric" in problems(text(metric="[span_recall, span_iou]", rest=f"{race}method: grid"), folder)
    assert "not fewer than the 60" in problems(text(rest=race.replace("25", "60") + "method: grid"), folder)
    sft = b"name: x\npipeline: {type: custom, import_path: 'json:C', total: 9, metrics: {a: maximize}}\nmetric: a\n"
    assert "race is over questions" in problems(sft + b"early_terminate: {type: race}\nmethod: grid\n", folder)


def test_data_are_read_once_and_pinned(folder: Path) -> None:
    loaded = check_data(load_text(text(), folder))
    assert set(loaded.pins) == {str(folder / "handbook"), str(folder / "questions.jsonl")}
    config = loaded.resolve({})
    assert config["corpus"]["content_hash"] == loaded.pins[str(folder / "handbook")]
    assert config["questions"]["content_hash"] == loaded.pins[str(folder / "questions.jsonl")]
    assert isinstance(loaded.spec.pipeline, RagConfig)
    again = from_record(json.loads(json.dumps(loaded.record())))
    assert again.resolve({}) == config
    refuse_changed_data(again)


@pytest.mark.parametrize("name", ["handbook/tests.md", "questions.jsonl"])
def test_changed_data_are_refused(name: str, folder: Path) -> None:
    loaded = from_record(json.loads(json.dumps(check_data(load_text(text(), folder)).record())))
    path = folder / name
    path.write_text(path.read_text().replace("Monday", "Sunday"))
    with pytest.raises(Exception, match=r"changed|other|hash|not what"):
        refuse_changed_data(loaded)


def no_corpus(folder: Path) -> None:
    (folder / "handbook").rename(folder / "other")


def empty_corpus(folder: Path) -> None:
    (folder / "handbook" / "tests.md").unlink()


def blank_corpus(folder: Path) -> None:
    (folder / "handbook" / "tests.md").write_text(" \n")


def span_outside(folder: Path) -> None:
    change(folder, '"end": 32, ', '"end": 3200, ')


def no_document(folder: Path) -> None:
    change(folder, '"tests.md"', '"tsts.md"')


def one_id(folder: Path) -> None:
    change(folder, '"q1"', '"q0"')


def change(folder: Path, before: str, after: str) -> None:
    path = folder / "questions.jsonl"
    path.write_text(path.read_text().replace(before, after, 1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_corpus, "pipeline.corpus"),
        (empty_corpus, "holds no file that can be read"),
        (blank_corpus, "no document holds any text"),
        (span_outside, "questions.jsonl, line 1 (question 'q0'): span 0 of 'tests.md': [0, 3200) ends outside its document"),
        (no_document, "questions.jsonl, line 1 (question 'q0'): the corpus has no document 'tsts.md'; did you mean 'tests.md'?"),
        (one_id, "questions.jsonl, line 2: its id 'q0' is that of"),
    ],
)  # fmt: skip
def test_bad_data_are_one_message_before_anything_starts(
    spoil: Any, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "rag.yaml").write_bytes(text())
    assert cli.main(["check", "rag.yaml", "--data"]) == 0
    spoil(folder)
    there = sorted(folder.rglob("*"))
    for words in (["check", "rag.yaml", "--data"], ["submit", "rag.yaml"]):
        capsys.readouterr()
        assert cli.main(words) == 2
        told = capsys.readouterr()
        assert said in told.err
        assert "Traceback" not in told.err
        assert sorted(folder.rglob("*")) == there


def test_sources_of_other_sweeps_are_found_in_nested_places(folder: Path) -> None:
    generate = "  generate: {type: local, base_model: 'sweep://nothing/soup'}"
    said = problems(text(pipeline=generate), folder)
    assert "there is no sweep 'nothing'" in said
    assert "pipeline.generate.base_model" in said


def test_energy_of_trials_that_share_their_models_is_not_measured_and_that_is_told(folder: Path) -> None:
    warnings = load_text(text(rest="resources: {energy: {cpu_watts: 10}}"), folder).warnings
    assert "resources.energy has no effect: RAG trials ask models that all of them share" in warnings
    assert not any("energy" in warning for warning in load_text(text(), folder).warnings)
