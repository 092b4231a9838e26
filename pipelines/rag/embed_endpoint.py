"""Embeddings of an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pipelines.calls import Answers, Identity, Role
from pipelines.endpoint import EndpointClient, Reply, public_address, read_embeddings
from pipelines.memo import Cost, Unanswered
from pipelines.rag.embed import vector_bytes
from pipelines.stage import Devices, Services, UserError

FUNCTION = 1


class EmbeddingEndpointModel:
    """The resident kind `openai_embeddings`; the spec has the fields of `pipelines.rag.models.EmbeddingEndpoint`."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = True

    def __init__(self, client: EndpointClient, batch_size: int, dimension: int | None, price: float) -> None:
        self._client = client
        self._batch_size = batch_size
        self._dimension = dimension
        self._price = price

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """Address, name and length asked for: what lies behind them can't be seen."""
        address = public_address(spec["base_url"])
        return Identity(FUNCTION, f"{address} {spec['model']} {spec.get('dimension') or ''}".strip(), dtype="")

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> EmbeddingEndpointModel:
        """Its client, for all trials.

        Raises:
            UserError: when the key is not there.
        """
        price = float(spec.get("price_per_million_tokens") or 0.0) / 1e6
        client = EndpointClient.of(spec, services)
        return EmbeddingEndpointModel(client, int(spec["batch_size"]), spec.get("dimension"), price)

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One vector a text, several texts a request; a request that finally failed leaves its texts unanswered."""
        starts = range(0, len(items), self._batch_size)
        batches = [list(items[start : start + self._batch_size]) for start in starts]
        return [answer for batch in self._client.each(self._batch, batches) for answer in batch]

    def _batch(self, texts: list[str]) -> Answers:
        body: dict[str, Any] = {"input": texts}
        if self._dimension is not None:
            body["dimensions"] = self._dimension
        reply: Reply[tuple[list[list[float]], int]] = self._client.post("embeddings", body, read_embeddings(len(texts)))
        found, seconds = reply.value, reply.seconds / len(texts)
        if isinstance(found, Unanswered):
            return [(found, Cost(seconds)) for _ in texts]
        vectors, tokens = found
        if self._dimension not in (None, len(vectors[0])):
            raise UserError(
                f"embedding_model: {self._client.model} gave vectors of {len(vectors[0])} numbers where dimension is "
                f"{self._dimension}; leave dimension out for a model that can't shorten its vectors"
            )
        share = tokens / len(texts)
        cost = Cost(seconds, round(share), share * self._price)
        return [(value, cost) for value in vector_bytes(np.asarray(vectors, dtype=np.float32))]
