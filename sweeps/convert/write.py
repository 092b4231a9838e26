"""A sweep file from plain values: block style on top, one line for what is small, comments above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sweeps.starter.quote import comment, quoted

_WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Writes what `sweeps.yaml_source` reads back: text in quotes wherever it would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Values are written out."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if quoted(value) == value else '"')


def _number(dumper: _Dumper, value: float) -> yaml.Node:
    text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    whole = mantissa if "." in mantissa else f"{mantissa}.0"
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{whole}{mark}{exponent}")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)


def line_of(value: Any) -> str:
    """A value as it stands behind its key, on one line."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=1_000_000, sort_keys=False)
    return text.strip()[1:-1]


def write(data: Mapping[str, Any], head: Sequence[str]) -> str:
    """The file.

    Args:
        data: its content, in the order in which it is written.
        head: lines of the comment above.
    """
    lines = [f"# {comment(line)}".rstrip() for line in head]
    return "\n".join([*lines, *_block(data, "")]) + "\n"


def _block(data: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in data.items():
        line = f"{indent}{quoted(str(key))}: {line_of(value)}"
        if (
            isinstance(value, Mapping)
            and value
            and (len(line) > _WIDTH or _deep(value) or key in ("pipeline", "parameters"))
        ):
            lines += [f"{indent}{quoted(str(key))}:", *_block(value, indent + "  ")]
        elif isinstance(value, list) and len(line) > _WIDTH and any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{quoted(str(key))}:")
            lines += [f"{indent}  - {line_of(item)}" for item in value]
        else:
            lines.append(line)
    return lines


def _deep(value: Mapping[str, Any]) -> bool:
    """Whether mappings stand in a mapping."""
    return any(isinstance(item, Mapping) for item in value.values())
