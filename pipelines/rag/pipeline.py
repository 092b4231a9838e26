"""The RAG pipeline: a trial answers the tune questions in one order, reports at every milestone, and keeps what it found.

The resource is questions. At r the report scores the first r questions of the sweep-wide order; a checkpoint holds what
was retrieved and answered so far by offsets, without texts. Models are asked through the memo and resident hosts, so a
trial imports no torch.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators import build_evaluator, parse_evaluator
from evaluators.answers import Answered, AnswerEvaluator, Passage, Question, Tools
from evaluators.base import Report, Score, Split
from evaluators.config import EvaluatorConfig, RetrievalConfig
from pipelines.calls import Calls, make_calls
from pipelines.config import RagConfig, parse_pipeline
from pipelines.finetune.checkpoint import placing, read_report, write_complete
from pipelines.rag.bench import Bench
from pipelines.rag.questions import QuestionSplits, load_questions
from pipelines.stage import EvaluationJob, Resource, Task

STATE = "answered.json"
RECALL_QUESTIONS = 200
"""Questions that a store's recall against exact search is measured on, the first ones of tune."""
OFFLINE = ("index", "judge")
"""Stages that no user waits for: what is embedded for the index, and what is judged."""


class RagPipeline:
    """What a RAG trial runs."""

    resource: Resource = "questions"

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """Answer questions from `task.start_resource` on, reporting at every milestone."""
        config = typed(task.config)
        calls = make_calls(task.services, f"{task.trial}/{task.seed}/{task.attempt}", task.devices)
        bench = Bench(config, calls, task.seed, task.services.cache)
        questions = splits_of(config, bench).tune
        done: list[Answered] = []
        before: dict[str, dict[str, float]] = {}
        if task.start is not None:
            if task.replay:
                report(read_report(Path(task.start)))
            done, before = load_answered(Path(task.start), bench, questions)
        for milestone in task.milestones:
            began = time.perf_counter()
            entries = list(task.rung_evaluators)
            if milestone >= task.total:
                entries += [entry for entry in task.end_evaluators if entry not in entries]
            configs = [parse_evaluator(entry) for entry in entries]
            done = self._extend(bench, questions[:milestone], done, configs)
            scores = score(configs, done, "tune", tools_of(config, bench, calls, task.judge))
            spent = spent_on(calls, before)
            measured = {"cost/seconds": time.perf_counter() - began, **telemetry(spent, milestone)}
            recall = bench.store_recall(questions[:RECALL_QUESTIONS]) if milestone >= task.total else None
            if recall is not None:
                measured["cost/store_recall"] = recall
            made = Report(milestone, scores, measured, f"checkpoint-{milestone}")
            with placing(Path(task.folder) / f"checkpoint-{milestone}") as folder:
                save_answered(folder, done, spent)
                write_complete(folder, made)
            report(made)

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """Score the configuration on a split; a RAG configuration has no weights, so `job.model` says nothing."""
        config = typed(job.config)
        calls = make_calls(job.services, f"evaluate/{os.getpid()}/{threading.get_ident()}", job.devices)
        bench = Bench(config, calls, 0, job.services.cache)
        questions = splits_of(config, bench).of(job.split)
        configs = [parse_evaluator(entry) for entry in job.evaluators]
        done = self._extend(bench, questions, [], configs)
        return score(configs, done, job.split, tools_of(config, bench, calls, job.judge))

    def _extend(
        self, bench: Bench, questions: Sequence[Question], done: list[Answered], configs: Sequence[EvaluatorConfig]
    ) -> list[Answered]:
        """What was done and what is new, with answers for as many of the first questions as evaluators look at."""
        cuts = [k for config in configs if isinstance(config, RetrievalConfig) for k in config.k]
        characters = [n for config in configs if isinstance(config, RetrievalConfig) for n in config.characters]
        new = bench.retrieved(questions[len(done) :], cuts, max(characters, default=0))
        together = [*done[: len(questions)], *new]
        wanted = max((_limit(config, len(together)) for config in configs if needs_answers(config)), default=0)
        places = [i for i in range(wanted) if together[i].answer is None]
        for place, one in zip(places, bench.answered([together[i] for i in places]), strict=True):
            together[place] = one
        return together


def typed(config: Mapping[str, Any]) -> RagConfig:
    """The configuration of a task."""
    found = parse_pipeline(config)
    assert isinstance(found, RagConfig), f"a RAG pipeline was given {found.type}"
    return found


def splits_of(config: RagConfig, bench: Bench) -> QuestionSplits:
    """The questions, every span checked against the corpus."""
    return load_questions(config.questions_section, bench.corpus, config.seed_data)


def needs_answers(config: EvaluatorConfig) -> bool:
    """Whether an evaluator looks at answers."""
    return "retrieval" not in config.subjects


def _limit(config: EvaluatorConfig, count: int) -> int:
    return count if config.limit is None else min(config.limit, count)


def score(
    configs: Sequence[EvaluatorConfig], answered: Sequence[Answered], split: Split, tools: Tools
) -> tuple[Score, ...]:
    """Scores of several evaluators; `limit` keeps the first questions."""
    scores: list[Score] = []
    for config in configs:
        scorer: Any = build_evaluator(config)
        assert isinstance(scorer, AnswerEvaluator), f"{config!r} can't score answers; the door has checked it"
        scores += scorer.evaluate_answers(answered[: _limit(config, len(answered))], split, tools)
    return tuple(scores)


def tools_of(config: RagConfig, bench: Bench, calls: Calls, judge: Mapping[str, Any] | None = None) -> Tools:
    """What evaluators of answers may use."""
    embed = grader = None
    if judge is not None:
        from pipelines.rag.judging import build_judge

        grader = build_judge(judge, calls)
    if config.answer_embedding is not None:
        from pipelines.rag.embed import build_embedder

        embed = build_embedder(config.answer_embedding, calls).queries
    documents = {document.id: document.text for document in bench.corpus.documents}
    return Tools(grader, embed, documents)


SUMS = ("calls", "computed", "unanswered", "seconds", "tokens", "price")
Spent = Mapping[str, Mapping[str, float]]
"""Stage -> what its calls came to, whoever computed them (`SUMS`)."""


def spent_on(calls: Calls, before: Spent) -> dict[str, dict[str, float]]:
    """What a run's stages came to: in the leases before this one, and in this one."""
    found = {stage: dict(sums) for stage, sums in before.items()}
    for stage, used in calls.usage.items():
        now = (used.calls, used.computed, used.unanswered, used.spent.seconds, used.spent.tokens, used.spent.price)
        sums = found.setdefault(stage, dict.fromkeys(SUMS, 0.0))
        for name, value in zip(SUMS, now, strict=True):
            sums[name] += value
    return found


def telemetry(spent: Spent, questions: int) -> dict[str, float]:
    """Costs a question as they were when the calls were computed, and how many calls nobody had computed before."""

    def total(name: str, stages: Sequence[str]) -> float:
        return sum(spent[stage][name] for stage in stages)

    serving = [stage for stage in spent if stage not in OFFLINE]
    found = {"cost/latency": total("seconds", serving) / questions}
    found |= {f"cost/{stage}_latency": spent[stage]["seconds"] / questions for stage in serving}
    found |= {f"cost/{name}": total(name, serving) / questions for name in ("tokens", "price")}
    found |= {f"cost/{name}": total(name, list(spent)) for name in ("calls", "computed", "unanswered")}
    return found


def save_answered(folder: Path, answered: Sequence[Answered], spent: Spent) -> None:
    """Write what was found, by offsets, and what it came to."""
    rows = [
        {
            "question": one.question.id,
            "ranked": [[p.document, p.start, p.end, p.score] for p in one.ranked],
            "context": [[p.document, p.start, p.end, p.score] for p in one.context],
            "answer": one.answer,
        }
        for one in answered
    ]
    record = {"answered": rows, "spent": {stage: dict(sums) for stage, sums in spent.items()}}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    (folder / STATE).write_text(text, encoding="utf-8")


def load_answered(
    folder: Path, bench: Bench, questions: Sequence[Question]
) -> tuple[list[Answered], dict[str, dict[str, float]]]:
    """The inverse of `save_answered`, with the texts from the corpus."""
    texts = {document.id: document.text for document in bench.corpus.documents}

    def passages(rows: Sequence[Sequence[Any]]) -> tuple[Passage, ...]:
        return tuple(Passage(d, int(s), int(e), texts[d][int(s) : int(e)], float(v)) for d, s, e, v in rows)

    record = json.loads((folder / STATE).read_text(encoding="utf-8"))
    known = {question.id: question for question in questions}
    answered = [
        Answered(known[row["question"]], passages(row["ranked"]), passages(row["context"]), row["answer"])
        for row in record["answered"]
    ]
    return answered, record["spent"]
