"""How a stage asks a model: what the memo knows is not asked again, the rest goes to a resident model in one batch.

The parts: a *model spec* (JSON: `kind`, and what `load` needs), a `Model` that a host has loaded from it, a `Host` that
batches what all callers ask, and `Calls`, one a lease, that a stage holds. A model's identity (content hash, tokenizer,
versions) is found without loading it, so that a hit never loads anything.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from pipelines.memo import Call, Cost, Memo, Unanswered, compute
from pipelines.stage import Devices, Services

Answers = list[tuple[bytes | Unanswered, Cost]]
"""What a model says to a batch: a value and what it cost, for each item."""
Role = Literal["embedder", "reranker", "generator", "judge"]
"""Whose work a resident model does; `hosts:` of the sweep file gives each its resources."""

MODELS: dict[str, str] = {
    "openai_chat": "pipelines.chat:ChatEndpoint",
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
    """The class behind a spec's `kind`."""
    module, _, name = MODELS[str(spec["kind"])].partition(":")
    found: type[Kind] = getattr(importlib.import_module(module), name)
    return found


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
        spent: what all of them cost when they were computed.
        fresh: what was computed now alone.
    """

    calls: int = 0
    computed: int = 0
    spent: Cost = field(default_factory=Cost)
    fresh: Cost = field(default_factory=Cost)


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
        self._memo = memo
        self._owner = owner
        self._identities: dict[str, Identity] = {}
        self.usage: dict[str, Usage] = {}

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
        """Answers in order: those the memo has, and one batch to the host for the others.

        Args:
            stage: what it is for, in `usage`.
            spec: the model.
            method: what is asked of it (`embed`, `scores`, `generate`, ...).
            items: one question each, JSON; everything that changes one answer alone.
            parameters: what changes all answers, JSON.
        """
        settings = dict(parameters or {})
        counted: Counter[str] = Counter()
        fresh: list[Cost] = []
        if self._memo is None:
            answers = answered(self._host.ask(spec, method, items, settings))
            self._count(stage, len(items), len(items), [cost for _, cost in answers], [cost for _, cost in answers])
            return [value for value, _ in answers]
        who = self.identity(spec)
        known = {
            "kind": method,
            "function": who.function,
            "model": who.model,
            "tokenizer": who.tokenizer,
            "dtype": who.dtype,
            "parameters": {**settings, "versions": dict(who.versions)},
        }
        calls = [Call(input=item, **known) for item in items]  # type: ignore[arg-type]

        def missing(asked: list[Call]) -> list[tuple[bytes, Cost]]:
            counted["computed"] += len(asked)
            found = answered(self._host.ask(spec, method, [call.input for call in asked], settings))
            fresh.extend(cost for _, cost in found)
            return found

        values = compute(self._memo, calls, missing, self._owner)
        self._count(stage, len(items), counted["computed"], fresh, fresh)
        return values

    def _count(self, stage: str, asked: int, computed: int, spent: Sequence[Cost], fresh: Sequence[Cost]) -> None:
        before = self.usage.get(stage, Usage())
        self.usage[stage] = replace(
            before,
            calls=before.calls + asked,
            computed=before.computed + computed,
            spent=total([before.spent, *spent]),
            fresh=total([before.fresh, *fresh]),
        )


def answered(answers: Answers) -> list[tuple[bytes, Cost]]:
    """The answers where all are there.

    Raises:
        NoAnswer: where one is not.
    """
    found = [(value, cost) for value, cost in answers if not isinstance(value, Unanswered)]
    if len(found) < len(answers):
        reason = next(value.reason for value, _ in answers if isinstance(value, Unanswered))
        raise NoAnswer(f"{len(answers) - len(found)} of {len(answers)} calls have no answer: {reason}")
    return found


def total(costs: Sequence[Cost]) -> Cost:
    """The sum."""
    return Cost(
        sum(cost.seconds for cost in costs), sum(cost.tokens for cost in costs), sum(cost.price for cost in costs)
    )
