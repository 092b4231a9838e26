"""Resident models of one process: loaded when first asked for, kept, and asked in batches by all who need them.

Each model has a thread of its own, its *lane*, which takes what several callers ask of it within a few milliseconds as
one batch. Models of this process compute one at a time, so that they don't fight for its threads; endpoints are called at
once, by as many threads as their own settings allow. A model never asks another one, so nothing can wait for itself.

Example:
    >>> host = LocalHost(Devices(cpus=2))
    >>> host.ask({"kind": "wordllama", "dimension": 256}, "embed", ["a text"], {})
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.calls import Answers, Kind, Model, kind_of
from pipelines.stage import Devices, Services

KEPT = 4
"""Models of one process in memory at once: an embedder, a reranker, a generator and a judge."""
GATHER_SECONDS = 0.004
"""How long a lane waits for other callers' requests before it computes."""
BATCH_ITEMS = 256
"""Items of several callers that are computed together at most; one caller's own are never split."""
LINGER_SECONDS = 0.5
"""A model that was asked so recently is not put away for another one: its caller is about to ask again."""
REMOTE_THREADS = 64
"""Requests to endpoints that wait or run at once in one process; each endpoint has a bound of its own below it."""


@dataclass(eq=False)
class _Request:
    """What one caller asks; `group` is equal for requests that may share a batch."""

    method: str
    items: Sequence[Any]
    parameters: Mapping[str, Any]
    group: str
    future: Future[Answers] = field(default_factory=Future)


class LocalHost:
    """Resident models of this process; implements `pipelines.calls.Host`.

    Callers may be any number of threads. At most `kept` models are in memory: the one that was asked longest ago makes
    room. A batch that fails is computed again caller by caller, so that it fails only those it must.

    Args:
        devices: what all models together may use; torch is held to so many threads.
        services: secrets and cache for loading.
        kept: models in memory at most; endpoints don't count.
        gather_seconds: how long requests of several callers are gathered.
    """

    def __init__(
        self,
        devices: Devices | None = None,
        services: Services | None = None,
        *,
        kept: int = KEPT,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._devices = devices or Devices()
        self._services = services or Services()
        self._kept = kept
        self._gather = gather_seconds
        self._changed = threading.Condition()
        self._computing = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._remotes: dict[str, Model] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """See `pipelines.calls.Host`.

        Raises:
            Exception: what the model, or loading it, raised.
        """
        return self.submit(spec, method, items, parameters).result()

    def submit(
        self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
    ) -> Future[Answers]:
        """As `ask`, without waiting for the answer."""
        own = {key: value for key, value in spec.items() if key != "role"}
        name, kind = _canonical(own), kind_of(own)
        request = _Request(method, list(items), dict(parameters), _canonical([method, dict(parameters)]))
        with self._changed:
            if self._closed:
                raise RuntimeError("these hosts are closed")
            if getattr(kind, "remote", False):
                return self._remote(name, own, kind, request)
            if name not in self._lanes:
                self._lanes[name] = _Lane(self, name, own, kind)
            self._lanes[name].take_in(request)
            self._changed.notify_all()
        return request.future

    def loaded(self) -> int:
        """Models in memory now."""
        with self._changed:
            return sum(lane.holds for lane in self._lanes.values())

    def close(self) -> None:
        """Answer what is being computed, refuse the rest, and forget the models."""
        with self._changed:
            self._closed = True
            lanes, pool = list(self._lanes.values()), self._pool
            for lane in lanes:
                lane.refuse(RuntimeError("these hosts were closed"))
            self._changed.notify_all()
        for lane in lanes:
            lane.thread.join()
        if pool is not None:
            pool.shutdown()

    def _has_room(self) -> bool:
        """Whether one more model may be loaded; if not, the idle one that was asked longest ago is sent away.

        `_changed` is held.
        """
        holders = [lane for lane in self._lanes.values() if lane.holds]
        if len(holders) < self._kept:
            return True
        before = time.monotonic() - LINGER_SECONDS
        idle = [lane for lane in holders if not lane.busy and not lane.pending and lane.answered <= before]
        if idle and not any(lane.leaving for lane in holders):
            min(idle, key=lambda lane: lane.asked).leaving = True
            self._changed.notify_all()
        return False

    def _remote(self, name: str, spec: Mapping[str, Any], kind: type[Kind], request: _Request) -> Future[Answers]:
        """Have a thread of the pool ask an endpoint; `_changed` is held."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="endpoint")
        if name not in self._remotes:
            self._remotes[name] = kind.load(spec, self._devices, self._services)
        return self._pool.submit(_asked, self._remotes[name], request, request.items)


class _Lane:
    """One model's requests and the thread that answers them."""

    def __init__(self, host: LocalHost, name: str, spec: Mapping[str, Any], kind: type[Kind]) -> None:
        self._host = host
        self._name = name
        self._spec = spec
        self._kind = kind
        self.pending: list[_Request] = []
        self.model: Model | None = None
        self.holds = False
        self.busy = False
        self.leaving = False
        self.asked = self.answered = time.monotonic()
        self.thread = threading.Thread(target=self._serve, name=f"host-{spec['kind']}", daemon=True)
        self.thread.start()

    def take_in(self, request: _Request) -> None:
        """Let a request wait here; `_changed` is held."""
        self.pending.append(request)
        self.asked = time.monotonic()

    def refuse(self, error: BaseException) -> None:
        """Fail everything that waits here; `_changed` is held."""
        for request in self.pending:
            request.future.set_exception(error)
        self.pending.clear()

    def _serve(self) -> None:
        """The thread: one batch after another, until the model is to go."""
        while self._await_requests():
            try:
                self._load()
                time.sleep(self._host._gather)
                self._compute()
            except BaseException as error:  # a model that can't be loaded fails its callers, not this thread
                self._give_up(error)
            with self._host._changed:
                self.busy = False
                self.answered = time.monotonic()
                self._host._changed.notify_all()

    def _await_requests(self) -> bool:
        """Wait for something to answer; False when the model is to go."""
        host = self._host
        with host._changed:
            while not self.pending:
                if self.leaving or host._closed:
                    host._lanes.pop(self._name, None)
                    self.model, self.holds = None, False
                    host._changed.notify_all()
                    return False
                host._changed.wait()
            self.busy, self.leaving = True, False  # asked again before it went: it stays
            return True

    def _load(self) -> None:
        """Load the model, once there is room for it."""
        host = self._host
        if self.model is None:
            with host._changed:
                while not host._has_room():
                    host._changed.wait(LINGER_SECONDS / 4)
                self.holds = True
            with host._computing:
                limit_torch(host._devices)
                self.model = self._kind.load(self._spec, host._devices, host._services)

    def _compute(self) -> None:
        """Answer the oldest request, and those that can be computed with it."""
        with self._host._changed:
            batch = self._take()
        with self._host._computing:
            limit_torch(self._host._devices)
            assert self.model is not None, "a lane loads before it computes"
            _answer(self.model, batch)

    def _give_up(self, error: BaseException) -> None:
        """Fail what waits here; the next request tries again to load."""
        with self._host._changed:
            self.model, self.holds = None, False
            self.refuse(error)

    def _take(self) -> list[_Request]:
        """The oldest request and those that may share its batch; `_changed` is held."""
        first, *others = self.pending
        batch, count = [first], len(first.items)
        for request in others:
            if request.group == first.group and count + len(request.items) <= BATCH_ITEMS:
                batch.append(request)
                count += len(request.items)
        self.pending = [request for request in self.pending if request not in batch]
        return batch


def _answer(model: Model, batch: Sequence[_Request]) -> None:
    """Compute a batch and give every caller its part; where it fails, each caller's part by itself."""
    first = batch[0]
    try:
        answers = _asked(model, first, [item for request in batch for item in request.items])
    except BaseException as error:  # whose part failed is found out by asking again
        if len(batch) == 1:
            first.future.set_exception(error)
            return
        for request in batch:
            _answer(model, [request])
        return
    start = 0
    for request in batch:
        request.future.set_result(answers[start : start + len(request.items)])
        start += len(request.items)


def _asked(model: Model, request: _Request, items: Sequence[Any]) -> Answers:
    answers = model.answer(request.method, items, request.parameters)
    if len(answers) != len(items):
        raise ValueError(f"a model must answer every item, but got {len(answers)} for {len(items)}")
    return answers


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def limit_torch(devices: Devices) -> None:
    """Hold torch, where it is loaded, to the given threads in the calling thread."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(max(1, int(devices.cpus)))


_HERE: dict[tuple[Devices, str | None], LocalHost] = {}
_MAKING = threading.Lock()


def here(devices: Devices, services: Services) -> LocalHost:
    """This process's own resident models, made once."""
    with _MAKING:
        key = (devices, services.cache)
        if key not in _HERE:
            _HERE[key] = LocalHost(devices, services)
        return _HERE[key]
