"""What the door says about secrets: they are named, never written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.draft import Draft
from sweeps.problems import show
from sweeps.yaml_source import Place

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""Of a variable of the environment; its name is the group."""
SECRET_NAME = re.compile(r"(TOKEN(?!IZ)|API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
"""Of a variable or a key; `TOKENIZERS_PARALLELISM` is none."""
SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w-]{20,}"
    r"|xox[abp]-[\w-]{10,}|eyJ[\w-]{20,}\.[\w-]{20,})"
)


def check_secrets(draft: Draft) -> None:
    """No value of the file is a secret: the whole file goes into the ledger."""
    env = draft.document.data.get("env")
    for name, value in (env if isinstance(env, Mapping) else {}).items():
        if not isinstance(value, str) or REFERENCE.fullmatch(value):
            continue
        if SECRET_NAME.search(name) or SECRET_VALUE.search(value):
            draft.wrong(
                ("env", name), f"a secret in plain text; export {name} in the shell, and write {name}: ${{{name}}}"
            )
        elif "${" in value:
            draft.wrong(("env", name), f"{show(value)} mixes a reference with text; write ${{NAME}} alone")
    for place, text in _texts(draft.document.data, ()):
        if place[:1] != ("env",) and SECRET_VALUE.search(text):
            mend = "looks like a secret; export it in the shell, and name it under env as NAME: ${NAME}"
            draft.wrong(place, mend)


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _texts(inner, (*place, key))
