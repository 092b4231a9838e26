"""Secrets' values: the one place where they are read, and where they are taken out of what a process says.

A sweep file names them (`env: {HF_TOKEN: "${HF_TOKEN}"}`). Each process that needs them reads them from its own environment, so
that none of them travels: workers when they begin, the driver for its trackers and its own messages.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from pipelines.stage import UserError
from sweeps.secret_rules import REFERENCE, SECRET_NAME, SECRET_VALUE

MASK = "•••"
SHORTEST_SECRET = 4
SHORTEST_LINE = 8
"""Of a secret with several lines each line of so many characters is one as well: messages show lines."""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SETTINGS = frozenset({"true", "false", "none", "null", "auto"})
"""Values of variables that have a secret's name and are none: `USE_TOKEN=true`."""


def names_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that the file's `env` takes from the environment, in order."""
    return tuple(sorted({name for value in env.values() for name in REFERENCE.findall(value)}))


def absent(env: Mapping[str, str]) -> list[str]:
    """Those of `names_of` that are not in this process's environment."""
    return [name for name in names_of(env) if name not in os.environ]


def filled_in(env: Mapping[str, str]) -> dict[str, str]:
    """The file's `env` with `${NAME}` filled in from this process's environment.

    Raises:
        UserError: naming every variable that is not there.
    """
    refuse_absent(env)
    return {key: REFERENCE.sub(lambda found: os.environ[found[1]], value) for key, value in env.items()}


def refuse_absent(env: Mapping[str, str]) -> None:
    """Raise as `filled_in`, and read nothing."""
    missing = absent(env)
    if missing:
        raise UserError(f"env: {', '.join(missing)} not in the environment; export it, then submit again")


def read_secret(name: str) -> str:
    """A secret by its name from this process's environment.

    Raises:
        KeyError: when it is not there.
    """
    return os.environ[name]


def values_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The values that the file's `env` takes from this process's environment, and those of variables with a secret's name."""
    named = [os.environ[name] for name in names_of(env) if os.environ.get(name)]
    own = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and not _is_setting(value)]
    return tuple(dict.fromkeys([*named, *own]))


def _is_setting(value: str) -> bool:
    return not value or value.lower() in _SETTINGS or os.path.exists(value)


class Masks:
    """Takes secrets out of texts.

    Args:
        secrets: values; what is shorter than four characters is no secret.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._longest_first = spellings(secrets)

    def text(self, text: str) -> str:
        """A text without them."""
        for secret in self._longest_first:
            text = text.replace(secret, MASK)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value without them in any of its texts."""
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value


def spellings(secrets: Iterable[str]) -> list[str]:
    """What must not be said, the longest first: each secret as it is, and as messages, JSON and addresses write it."""
    found: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            found |= {secret, secret.strip(), repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")}
            found |= {line.strip() for line in secret.splitlines() if len(line.strip()) >= SHORTEST_LINE}
    return sorted((one for one in found if len(one) >= SHORTEST_SECRET), key=lambda one: (-len(one), one))


_OWN = [Masks()]
"""Of this process."""


def know(secrets: Iterable[str]) -> None:
    """Have `masked` take these out in this process, in place of those before."""
    _OWN[:] = [Masks(secrets)]


def masked(text: str) -> str:
    """A text without the secrets that this process knows, and without what looks like one."""
    return by_shape(_OWN[0].text(text))


def by_shape(text: str) -> str:
    """A text without what has the shape of a secret, and without names and passwords between `://` and `@`."""
    return _CREDENTIALS.sub(MASK, SECRET_VALUE.sub(MASK, text))
