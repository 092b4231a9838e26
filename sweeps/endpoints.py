"""Which endpoints a sweep will ask, so that one that is down is told before the first trial."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sweeps.space import Choice, Domain

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

LOOKED_AT = 512
"""Configurations of a grid that are looked at; of a larger space so many draws."""


def endpoints_of(loaded: LoadedSweep) -> list[dict[str, Any]]:
    """Each endpoint that the file names, once: sections with a `base_url`, of the configurations and of other sections."""
    record = loaded.record()
    if '"base_url"' not in json.dumps(record["spec"]) and "base_url" not in json.dumps(list(loaded.space.paths)):
        return []
    others = {key: value for key, value in record["spec"].items() if key not in ("pipeline", "parameters")}
    sections = [*_sections(others), *(found for config in _configurations(loaded) for found in _sections(config))]
    distinct = {json.dumps([one.get(key) for key in ("base_url", "model", "api_key")]): one for one in sections}
    return list(distinct.values())


def _configurations(loaded: LoadedSweep) -> Iterator[dict[str, Any]]:
    space = loaded.space
    if space.size is not None:
        for choices in itertools.islice(space.grid(), LOOKED_AT):
            yield loaded.resolve(space.replay(choices))
        return
    generator = random.Random(0)

    def draw(name: str, domain: Domain) -> Any:
        return generator.choice(domain.values) if isinstance(domain, Choice) else domain.scale(generator.random())

    for _ in range(LOOKED_AT):
        yield loaded.resolve(space.sample(draw)[0])


def _sections(value: Any) -> Iterator[dict[str, Any]]:
    """Every section with a `base_url` in a JSON value."""
    if isinstance(value, Mapping):
        if value.get("base_url") and value.get("model"):
            yield dict(value)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _sections(inner)
