"""Generated texts as models hand them over, and the chat endpoint as a kind of resident model.

Every kind that generates has one method, `generate`: an item is `{"messages": [...]}` (or `{"prompt": text}`), with
`max_new_tokens` where it differs from the parameters' and `seed` where it is drawn; the parameters are `max_new_tokens`,
`temperature` and `stop`. So a judge and a generator can be any of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evaluators.base import Generation
from pipelines.calls import Answers, Identity, Role
from pipelines.endpoint import Broken, EndpointClient, public_address
from pipelines.memo import Cost, Unanswered
from pipelines.stage import Devices, Services

FUNCTION = 1
"""Version of what is sent; raise it when answers change."""


NEWER_LIMIT = "max_completion_tokens"
"""Some models of OpenAI's refuse `max_tokens` and name this in the refusal."""


def pack(generation: Generation) -> bytes:
    """A generated text as the memo holds it."""
    return json.dumps([generation.text, generation.prompt_tokens, generation.new_tokens]).encode()


def unpack(value: bytes) -> Generation:
    """The inverse of `pack`."""
    text, prompt_tokens, new_tokens = json.loads(value)
    return Generation(text, prompt_tokens, new_tokens)


def messages_of(item: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of an item; a bare prompt is the user's."""
    if "messages" in item:
        return [dict(message) for message in item["messages"]]
    return [{"role": "user", "content": item["prompt"]}]


class ChatEndpoint:
    """Chat completions of an OpenAI-compatible endpoint: the kind `openai_chat`.

    The spec has the fields of `pipelines.rag.models.Endpoint` and the prices of `EndpointGenerator`.
    """

    role: ClassVar[Role] = "generator"
    remote: ClassVar[bool] = True

    def __init__(self, client: EndpointClient, prompt_price: float = 0.0, new_price: float = 0.0) -> None:
        self._client = client
        self._prices = (prompt_price, new_price)
        self._limit = "max_tokens"

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """Address and name: what lies behind them can't be seen."""
        return Identity(FUNCTION, f"{public_address(spec['base_url'])} {spec['model']}", dtype="")

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> ChatEndpoint:
        """Its client, for all trials.

        Raises:
            UserError: when the key is not there.
        """
        prices = [float(spec.get(f"price_per_million_{kind}_tokens", 0.0) or 0.0) / 1e6 for kind in ("prompt", "new")]
        return ChatEndpoint(EndpointClient.of(spec, services), *prices)

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """See `Model.answer`; the only method is `generate`."""
        if method != "generate":
            raise ValueError(f"a chat endpoint answers 'generate', but got {method!r}")
        return self._client.each(lambda item: self._one(item, parameters), items)

    def _one(self, item: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[bytes | Unanswered, Cost]:
        body: dict[str, Any] = {
            "messages": messages_of(item),
            self._limit: item.get("max_new_tokens", parameters.get("max_new_tokens", 64)),
            "temperature": parameters.get("temperature", 0.0),
        }
        if parameters.get("stop"):
            body["stop"] = list(parameters["stop"])
        if "seed" in item:
            body["seed"] = item["seed"]
        reply = self._client.post("chat/completions", body, read_completion)
        found = reply.value
        if isinstance(found, Unanswered):
            if NEWER_LIMIT in found.reason and NEWER_LIMIT not in body:
                self._limit = NEWER_LIMIT
                return self._one(item, parameters)
            return found, Cost(reply.seconds)
        price = found.prompt_tokens * self._prices[0] + found.new_tokens * self._prices[1]
        return pack(found), Cost(reply.seconds, found.prompt_tokens + found.new_tokens, price)


def read_completion(answer: Any) -> Generation:
    """The text of a chat completion; an endpoint that counts no tokens is believed to have used none.

    Raises:
        Broken: when there is no text in it.
    """
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise Broken(f"no text, finish_reason {answer['choices'][0].get('finish_reason')!r}")
    usage = answer.get("usage") or {}
    return Generation(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
