"""The text under a field of a configuration: what `stockpot explain`, errors and the JSON Schema say of it.

Only pydantic and the standard library.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from typing import Any, cast

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue


class Documented(BaseModel):
    """A configuration whose JSON Schema has the texts under its fields."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What pydantic makes, with the descriptions."""
        schema = handler(core_schema)
        for name, about in handler.resolve_ref_schema(schema).get("properties", {}).items():
            text = description(cls, name)
            if text and "description" not in about:
                about["description"] = text
        return schema


def description(model: type[BaseModel], name: str) -> str | None:
    """The text under a field in the class that has it.

    It is read from the source when it is asked for: pydantic's own `use_attribute_docstrings` reads the source of every model at
    import, a quarter of what `stockpot check` took.
    """
    info = model.model_fields.get(name)
    if info is None or info.description:
        return info and info.description
    sources = (*model.__mro__, getattr(model, "described_by", None))
    texts = (_texts(source).get(name) for source in sources if source not in (None, BaseModel, object))
    return next((text for text in texts if text), None)


@functools.cache
def _texts(model: type) -> dict[str, str]:
    """Field -> the text under it, of the fields that this class itself has."""
    try:
        source = textwrap.dedent(inspect.getsource(model))
    except (OSError, TypeError):  # made by `create_model`
        return {}
    body = cast(ast.ClassDef, ast.parse(source).body[0]).body
    found = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[field.target.id] = inspect.cleandoc(text)
    return found
