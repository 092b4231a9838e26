"""A RAG sweep as a user runs it, on real Ray: a race, answers from an endpoint, a verdict on test, and kill -9 half-way."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import killing
import pytest

from pipelines.memo import LocalMemo
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.load import load_file

pytestmark = pytest.mark.slow

PLACES = ("harbour", "station", "bridge", "tower", "market", "mill", "school", "garden")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

FILE = """\
name: {name}
storage: ./runs
pipeline:
  type: rag
  corpus: pages
  questions: {{path: questions.jsonl, test: {{fraction: 0.25}}}}
  chunk: {{type: fixed_characters, size: 120}}
  retrieve: {{type: bm25, top_k: 2}}
  generate: {{type: openai, base_url: "{address}", model: echo, max_new_tokens: 8, concurrency: 4}}
parameters:
  chunk.size: [60, 120, 400]
  retrieve:
    choose:
      bm25: {{}}
      dense: {{embedding_model: [wordllama]}}
method: grid
metric: span_recall
evaluate: [token_f1, {{type: exact_match, normalize: true}}]
baseline: {{chunk.size: 30}}
{rest}
"""


@dataclass
class Endpoint:
    """A chat endpoint that answers with the first day named after the question's place in its prompt, and keeps count."""

    address: str = ""
    asked: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            made.asked.append((time.time(), prompt))
            time.sleep(made.seconds)
            day = next((day for day in DAYS if day in prompt), "unknown")
            answer = {
                "choices": [{"message": {"content": day}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 1},
            }
            sent = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *words: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def write(folder: Path, name: str, endpoint: Endpoint, rest: str = "") -> Path:
    """The sweep file, eight pages and forty questions whose answers stand in them."""
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    rows = []
    for number, place in enumerate(PLACES):
        lines = [f"# The {place}", "", f"What is done at the {place}, and when.", ""]
        for step, day in enumerate(DAYS):
            lines.append(
                f"The {place} lamp {step + 1} is tested on {DAYS[(number + step) % 5]}, after the {day} shift has left."
            )
        text = "\n".join(lines) + "\n"
        (pages / f"{place}.md").write_text(text)
        for step in range(5):
            quote = next(line for line in lines if f"lamp {step + 1} " in line)
            start = text.index(quote)
            span = {"document": f"{place}.md", "start": start, "end": start + len(quote), "text": quote}
            answer = DAYS[(number + step) % 5]
            rows.append({"id": f"{place}-{step}", "question": f"When is lamp {step + 1} at the {place} tested?",
                         "answer": answer, "spans": [span]})  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / f"{name}.yaml"
    file.write_text(FILE.format(name=name, address=endpoint.address, rest=rest))
    return file


def shown(file: Path) -> dict[str, Any]:
    paths = load_file(file).paths
    done = subprocess.run(
        [killing.STOCKPOT, "show", str(paths.root), "--json"], capture_output=True, text=True, check=True
    )
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def kill_among_answers(file: Path, endpoint: Endpoint, count: int) -> int:
    """Begin the sweep, kill its driver with -9 when so many answers were asked for, and await that nothing of it is left."""
    driver = killing.start(file)
    until = time.monotonic() + 300
    while len(endpoint.asked) < count and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    pids = killing.below(driver.pid)
    nodes = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
    driver.kill()
    driver.wait()
    assert nodes
    assert not killing.await_gone(nodes), "Ray of the killed driver is still there"
    before = len(endpoint.asked)
    assert not killing.await_gone(pids), "processes of the killed driver are still there"
    late = len(endpoint.asked) - before
    assert late <= 4, f"{late} requests came after Ray's end; only what was on its way then may (4 at once)"
    return len(endpoint.asked)


def reports(file: Path) -> list[tuple[Any, ...]]:
    """What every run reported, in one order."""
    return sorted(told for told in killing.story(load_file(file).paths) if told[0] == "reported")


def test_configurations_race_answer_and_are_judged(tmp_path: Path, endpoint: Endpoint) -> None:
    file = write(tmp_path, "race", endpoint, "early_terminate: {type: race, block: 6, finalists: 2, most: 2}")
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    record = shown(file)
    trials = [row for row in record["rows"] if row["kind"] == "trial"]
    last = max(row["rung"] for row in trials)
    assert sum(row["rung"] == last for row in trials) == 2
    assert all(row["state"] in ("finished", "stopped") for row in trials)
    assert trials[0]["score"]["value"] > 0.8
    assert trials[0]["latency"]["p50"] > 0
    assert {"retrieve", "generate"} <= set(trials[0]["latency"]["stages"])
    [baseline] = [row for row in record["rows"] if row["kind"] == "baseline"]
    assert baseline["latency"]["p50"] > 0
    assert trials[0]["cost"]["tokens"] > 10
    judged = {(verdict["left"], verdict["right"], verdict["metric"]) for verdict in record["verdicts"]}
    assert ("winner", "baseline", "test/span_recall") in judged
    assert record["test_openings"] == 1

    told = subprocess.run(
        [killing.STOCKPOT, "compare", str(load_file(file).paths.root), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    [axes] = json.loads(told.stdout)["axes"]
    assert {effect["path"] for effect in axes["effects"]} == {"chunk.size", "retrieve.type"}


def test_after_a_kill_no_answer_is_paid_for_again(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.seconds = 0.05
    file = write(tmp_path, "killed", endpoint)
    before = kill_among_answers(file, endpoint, 20)
    assert killing.run_to_the_end(file) == 0, file.with_suffix(".out").read_text()
    paths = load_file(file).paths
    ledger = Ledger.read(paths.root)
    try:
        events = list(ledger.events())
    finally:
        ledger.close()
    state = fold(events)
    assert all(run.phase == "finished" for run in state.runs.values())
    ended = max(event.time for event in events if event.kind == "reported")
    asked = Counter(prompt for at, prompt in endpoint.asked if at <= ended)
    again = sum(count - 1 for count in asked.values())
    assert 0 < before < len(asked), "the kill must fall among the answers"
    on_their_way = 2 * 4  # two trials, each asking four at once: at the endpoint, or answered and not yet stored
    assert again <= on_their_way, f"{again} answers were paid for twice; only what was on its way at the kill may be"
    with LocalMemo(paths.memo) as memo:
        kinds = memo.stats()
    assert kinds.corrupt == 0
    questions = sum(run.newest.resource for run in state.runs.values() if run.newest is not None)
    print(f"{len(asked)} distinct answers for {questions} asked, {again} of them twice")
    assert len(asked) <= questions

    calm = write(tmp_path, "calm", endpoint)
    assert killing.run_to_the_end(calm) == 0, calm.with_suffix(".out").read_text()
    assert reports(calm) == reports(file)
