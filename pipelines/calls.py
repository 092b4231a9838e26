"""How a stage asks a model: what the memo knows is not asked again, the rest goes to a resident model in one batch.

The parts: a *model spec* (JSON: `kind`, and what `load` needs), a `Model` that a host has loaded from it, a `Host` that
batches what all callers ask, and `Calls`, one a lease, that a stage holds. A model's identity (content hash, tokenizer,
versions) is found without loading it, so that a hit never loads anything.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pipelines.computing import Requests, Settled, settle
from pipelines.memo import Call, Cost, Memo, Unanswered, total
from pipelines.stage import Devices, Services

Answers = list[tuple[bytes | Unanswered, Cost]]
"""What a model says to a batch: a value and what it cost, for each item."""
Role = Literal["embedder", "reranker", "generator", "judge"]
"""Whose work a resident model does; `hosts:` of the sweep file gives each its resources."""

REASONS_KEPT = 3

MODELS: dict[str, str] = {
    "cross_encoder": "pipelines.rag.rerank_cross_encoder:CrossEncoderModel",
    "maxsim": "pipelines.rag.rerank_maxsim:MaxSimModel",
    "local_lm": "pipelines.local_lm:LocalGenerator",
    "openai_chat": "pipelines.chat:ChatEndpoint",
    "openai_embeddings": "pipelines.rag.embed_endpoint:EmbeddingEndpointModel",
    "sentence_transformers": "pipelines.rag.embed_sentences:SentenceTransformers",
    "wordllama": "pipelines.rag.embed_wordllama:WordLlama",
}
"""Kind of a model spec -> "module:class" with `identify(spec)` and `load(spec, devices, services)`."""


@dataclass(frozen=True)
class Identity:
    """What of a model goes into the memo's keys.

    Attributes:
        function: version of our code that computes with it; raised when answers change.
        model: content hash of weights and configuration (adapter included), or address and name of an endpoint's model.
        tokenizer: content hash of tokenizer and chat template; empty where the model's hash covers it.
        dtype: of the computation.
        versions: versions of libraries that change the answer.
    """

    function: int
    model: str
    tokenizer: str = ""
    dtype: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict)


class Model(Protocol):
    """A loaded model. One thread at a time calls it, unless its kind is `remote`."""

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One (value, cost) an item, in order, the value `Unanswered` where there is none; items and parameters are JSON.

        An item's neighbours never change its answer beyond rounding, and sampled answers not at all.

        Raises:
            Exception: for the whole batch; the caller gives the claims back.
        """
        ...


class Kind(Protocol):
    """What `MODELS` names: how a kind of model is known and loaded.

    Attributes:
        role: the host that has it; a spec's own `role` (a generator that judges) comes first.
        remote: it computes elsewhere (an endpoint): several threads may call it, and nobody waits for other models.
    """

    role: ClassVar[Role]
    remote: ClassVar[bool]

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """Of a spec, without loading weights or importing torch.

        Raises:
            pipelines.stage.UserError: where there is no such model.
        """
        ...

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> Model:
        """Load it; `services.secret(name)` reads a key, `services.cache` is for converted models.

        Raises:
            pipelines.stage.UserError: where it can't be loaded.
        """
        ...


class Host(Protocol):
    """Resident models, loaded when first asked for.

    Calls of many trials are batched; a dead host is started again and asked again, so no request is lost.
    """

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """As `Model.answer`."""
        ...


def kind_of(spec: Mapping[str, Any]) -> type[Kind]:
    """The class behind a spec's `kind`: a name in `MODELS`, or `module:class` of a pipeline of one's own."""
    kind = str(spec["kind"])
    module, _, name = MODELS.get(kind, kind).partition(":")
    found: type[Kind] = getattr(importlib.import_module(module), name)
    return found


def _requests(spec: Mapping[str, Any]) -> Requests | None:
    """How the endpoint of a spec is asked; None for a model of this cluster's own, which computes a batch at once."""
    if not getattr(kind_of(spec), "remote", False):
        return None
    return Requests(int(spec.get("batch_size", 1)), int(spec.get("concurrency", 8)))


class NoAnswer(RuntimeError):
    """A model gave no answer where every one is needed."""


def role_of(spec: Mapping[str, Any]) -> Role:
    """The host that answers a spec: its own `role`, else its kind's."""
    role: Role = spec.get("role") or kind_of(spec).role
    return role


def make_calls(services: Services, owner: str, devices: Devices | None = None) -> Calls:
    """A lease's way to models.

    Args:
        services: the task's; without hosts the models are loaded in this process, without a memo nothing is stored.
        owner: unique among those that run at the same time, and the lease's id where it is one.
        devices: what models of this process may use.
    """
    from pipelines.hosts import here

    host = services.hosts() if services.hosts is not None else here(devices or Devices(), services)
    return Calls(host, None if services.memo is None else services.memo(), owner)


@dataclass(frozen=True)
class Usage:
    """What a stage asked.

    Attributes:
        calls: in all.
        computed: those that nobody had computed before.
        unanswered: those that have no answer.
        spent: what all of them cost when they were computed, whoever computed them.
        fresh: what was computed now alone.
        reasons: why calls have no answer, each once, the first few.
    """

    calls: int = 0
    computed: int = 0
    unanswered: int = 0
    spent: Cost = field(default_factory=Cost)
    fresh: Cost = field(default_factory=Cost)
    reasons: tuple[str, ...] = ()

    def with_all(self, settled: Sequence[Settled]) -> Usage:
        """These calls counted too."""
        fresh = [one.cost for one in settled if one.fresh]
        lacking = [one.value.reason for one in settled if isinstance(one.value, Unanswered)]
        return Usage(
            self.calls + len(settled),
            self.computed + len(fresh),
            self.unanswered + len(lacking),
            self.spent + Cost(*total([one.cost for one in settled])),
            self.fresh + Cost(*total(fresh)),
            tuple(dict.fromkeys([*self.reasons, *lacking]))[:REASONS_KEPT],
        )


class Calls:
    """One lease's way to models.

    Args:
        host: resident models.
        memo: None asks the host for everything (the latency probe).
        owner: unique among those that run at the same time.

    Attributes:
        usage: by stage (`embed`, `rerank`, `generate`, `judge`, ...).
    """

    def __init__(self, host: Host, memo: Memo | None, owner: str) -> None:
        self._host = host
        self._stored = memo
        self._bypass = [False]
        self._owner = owner
        self._identities: dict[str, Identity] = {}
        self._stage: str | None = None
        self.usage: dict[str, Usage] = {}

    def under(self, stage: str) -> Calls:
        """The same way, but all that is asked on it counts as one stage: a retriever's and a grader's in a corrective loop."""
        made = copy(self)
        made._stage = stage
        return made

    def identity(self, spec: Mapping[str, Any]) -> Identity:
        """Of a model, found once."""
        key = repr(sorted(spec.items(), key=str))
        if key not in self._identities:
            self._identities[key] = kind_of(spec).identify(spec)
        return self._identities[key]

    def ask(
        self,
        stage: str,
        spec: Mapping[str, Any],
        method: str,
        items: Sequence[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Answers in order: those the memo has, and the host's for the others, in batches.

        Args:
            stage: what it is for, in `usage`.
            spec: the model.
            method: what is asked of it (`embed`, `scores`, `generate`, ...).
            items: one question each, JSON; everything that changes one answer alone.
            parameters: what changes all answers, JSON.

        Raises:
            NoAnswer: where a call has no answer.
        """
        found = self.ask_each(stage, spec, method, items, parameters)
        lacking = sum(value is None for value in found)
        if lacking:
            reason = next(iter(self.usage[self._stage or stage].reasons), "no reason was given")
            raise NoAnswer(f"{lacking} of {len(found)} calls of {stage} have no answer: {reason}")
        return [value for value in found if value is not None]

    def ask_each(
        self,
        stage: str,
        spec: Mapping[str, Any],
        method: str,
        items: Sequence[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> list[bytes | None]:
        """As `ask`, None for what has no answer; `usage` counts those and has their reasons."""
        settings = dict(parameters or {})
        if self._memo is None:
            answers = self._host.ask(spec, method, items, settings)
            settled = [Settled(value, cost, fresh=True) for value, cost in answers]
        else:
            settled = settle(
                self._memo,
                list(map(self._made(spec, method, settings), items)),
                lambda calls: self._host.ask(spec, method, [call.input for call in calls], settings),
                self._owner,
                requests=_requests(spec),
            )
        self._count(stage, settled)
        return [None if isinstance(one.value, Unanswered) else one.value for one in settled]

    @contextlib.contextmanager
    def anew(self) -> Iterator[None]:
        """Ask for everything anew for a while, and store nothing: the latency probe."""
        before = self._bypass[0]
        self._bypass[0] = True
        try:
            yield
        finally:
            self._bypass[0] = before

    @property
    def _memo(self) -> Memo | None:
        """The memo; None without one, and while all is asked anew, also on the ways made by `under`."""
        return None if self._bypass[0] else self._stored

    def once(
        self,
        stage: str,
        kind: str,
        function: int,
        identity: Mapping[str, Any],
        items: Sequence[Any],
        compute_missing: Callable[[list[Any]], Answers],
    ) -> list[bytes]:
        """Answers that this process computes itself (a retrieval list): those the memo has, and the others in one batch.

        Args:
            stage: what it is for, in `usage`.
            kind: of the memo's entries.
            function: version of what computes them.
            identity: everything all answers depend on, JSON.
            items: one question each, JSON.
            compute_missing: one (value, cost) an item, in order; each has a value.
        """

        def missing(calls: Sequence[Call]) -> Answers:
            return compute_missing([call.input for call in calls])

        calls = [Call(kind, function, "", "", "", item, identity) for item in items]
        if self._memo is None:
            settled = [Settled(value, cost, fresh=True) for value, cost in (missing(calls) if calls else [])]
        else:
            settled = settle(self._memo, calls, missing, self._owner)
        self._count(stage, settled)
        return [one.value for one in settled if not isinstance(one.value, Unanswered)]

    def _count(self, stage: str, settled: Sequence[Settled]) -> None:
        counted = self._stage or stage
        self.usage[counted] = self.usage.get(counted, Usage()).with_all(settled)

    def _made(self, spec: Mapping[str, Any], method: str, settings: Mapping[str, Any]) -> Callable[[Any], Call]:
        """Makes the call of an item."""
        who = self.identity(spec)
        parameters = {**settings, "versions": dict(who.versions)}
        return lambda item: Call(method, who.function, who.model, who.tokenizer, who.dtype, item, parameters)
