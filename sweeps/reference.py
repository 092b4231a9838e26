"""The keys of a sweep file in text: for the terminal (`stockpot explain`), and as the page `docs/reference.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from sweeps.explain import Key, Section, sections

HEAD = """\
# The sweep file, key by key

Written from the spec by `make reference`; edit the texts in `sweeps/spec.py`, `pipelines/config.py` and `evaluators/config.py`.
`stockpot explain KEY` prints a key's entry. *unset*: the key may be left out, and its text says what then happens. Keys of
`pipeline` can be swept under `parameters`, but for those marked °.
"""
WIDTH = 100
MANY = 6
"""More variants than these are called `all`."""


def page() -> str:
    """`docs/reference.md`."""
    parts = [HEAD]
    for path, group in groupby(sections(), key=lambda section: section.path):
        parts.append(_table(path, list(group)))
    return "\n".join(parts)


def _table(path: str, group: Sequence[Section]) -> str:
    """One part of the page: what a section is, its variants, and a table of its keys."""
    places = ", ".join(
        f"`{place}`" for place in dict.fromkeys([path, *(p for one in group for p in one.also)]) if place
    )
    lines = [f"## {places or 'Top of the file'}", ""]
    variants = [section for section in group if section.variant]
    if variants:
        lines += [f"- `{section.told_by}: {section.variant}`: {section.text}" for section in variants]
    else:
        lines += [section.text for section in group]
    rows = _rows(group)
    told_apart = len(variants) > 1 and any(len(kinds) < len(variants) for _, kinds in rows)
    if rows:
        kind = variants[0].told_by if variants else "type"
        heads = ["key", *([kind] if told_apart else []), "what may stand there", "default", "meaning"]
        lines += ["", _row(heads), _row(["---"] * len(heads))]
    for key, kinds in rows:
        mark = " °" if key.path.startswith("pipeline.") and not key.swept else ""
        default = (
            "*unset*" if key.default == "unset" else "**must be given**" if key.default is None else f"`{key.default}`"
        )
        whose = "all" if len(kinds) == len(variants) > MANY else ", ".join(kinds)
        cells = [f"`{key.name}`{mark}", *([whose] if told_apart else []), key.type, default, key.text]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _rows(group: Sequence[Section]) -> list[tuple[Key, list[str]]]:
    """The keys of a section's variants, equal ones once, with the variants that have them."""
    found: dict[Key, list[str]] = {}
    for section in group:
        for key in section.keys:
            if key.name != section.told_by or not section.variant:
                found.setdefault(key, []).append(section.variant)
    return list(found.items())


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def overview() -> str:
    """Every key with the beginning of its text, for `stockpot explain` without a key."""
    lines = []
    for path, group in groupby(sections(), key=lambda section: section.path):
        listed = list(group)
        variants = " | ".join(section.variant for section in listed if section.variant)
        head = f"{path or 'top of the file'}{f' ({listed[0].told_by}: {variants})' if variants else ''}"
        lines += ["", *textwrap.wrap(head, WIDTH, subsequent_indent=" ")]
        rows = {key.name: key for key, _ in reversed(_rows(listed))}
        for name, key in reversed(rows.items()):
            room = WIDTH - 3 - max(28, len(name))
            lines.append(f"  {name:<28} {textwrap.shorten(key.text, room, placeholder=' ...')}")
    return "\n".join(lines[1:])


def entry(found: Sequence[Section]) -> str:
    """What `stockpot explain KEY` prints about what `find` found."""
    known = sections()
    keys: dict[Key, list[str]] = {}
    for section in found:
        for key in section.keys if section not in known else ():
            plain = replace(key, type="", text="") if key.name == section.told_by and section.variant else key
            keys.setdefault(plain, []).append(section.variant)
    return "\n\n".join(
        [*(_key(key, kinds) for key, kinds in keys.items()), *(_section(one) for one in found if one in known)]
    )


def _section(section: Section) -> str:
    width = max((len(key.name) for key in section.keys), default=0)
    lines = [section.title, *textwrap.wrap(section.text, WIDTH, initial_indent="  ", subsequent_indent="  ")]
    for key in section.keys:
        if key.name == section.told_by and section.variant:
            continue
        head = f"    {key.name:<{width}}  "
        lines += textwrap.wrap(key.text or key.type, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join(lines)


def _key(key: Key, variants: Sequence[str]) -> str:
    said = {
        "may be": key.type or " | ".join(variants),
        "default": "none, it must be given" if key.default is None else key.default,
        "where": _where(key, variants),
    }
    text = key.text or "Says which of them the section is."
    lines = [key.path, *textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")]
    for head, body in said.items():
        lines += textwrap.wrap(body, WIDTH, initial_indent=f"  {head:<9}", subsequent_indent=" " * 11)
    return "\n".join(lines)


def _where(key: Key, variants: Sequence[str]) -> str:
    section = key.path.rpartition(".")[0]
    place = f"under {section}" if section else "at the top of the file"
    if all(variants) and key.type:
        place += f", where its type is {' or '.join(variants)}"
    if key.path.startswith("pipeline."):
        place += "; may be swept under parameters" if key.swept else "; the same in all trials, so it can't be swept"
    return place


if __name__ == "__main__":
    print(page(), end="")
