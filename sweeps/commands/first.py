"""`init`, `schema`, `explain`: the first file, and what may stand in it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.commands.places import UsageError
from sweeps.glyphs import clean
from sweeps.local import absolute_path
from sweeps.problems import close, show
from sweeps.starter.base import QUESTION_PARTS

if TYPE_CHECKING:
    from sweeps.explain import Section

FIELDS = ("messages", "prompt", "completion", "text", "chosen", "rejected", "label")
"""What `--field-PART` names of rows to fine-tune on."""


def init(arguments: argparse.Namespace) -> int:
    """Look at the user's data and write a commented, valid sweep file for them."""
    from sweeps.load import load_text
    from sweeps.starter import starter_of
    from sweeps.starter.base import Request

    _refuse_unknown(arguments.kind)
    output = output_of(arguments.output, force=arguments.force)
    fields = _own_fields(arguments)
    data = arguments.data or _obvious(arguments.kind)
    request = Request(data, output, arguments.base_model, arguments.type, fields, arguments.questions)
    made = starter_of(arguments.kind)(request)
    load_text(made.text.encode(), output.parent, (), arguments.output)
    write_file(output, made.text, force=arguments.force)
    print("\n".join(clean(line) for line in made.found))
    print(f"wrote {clean(arguments.output)}\nnext: stockpot check {clean(shlex.quote(arguments.output))}")
    return 0


def named_fields(arguments: argparse.Namespace, parts: Sequence[str] = FIELDS) -> dict[str, str]:
    """What `--field-PART` says: part -> column."""
    return {part: name for part in parts if (name := getattr(arguments, f"field_{part}")) is not None}


def _own_fields(arguments: argparse.Namespace) -> dict[str, str]:
    """What `--field-PART` says of the kind's own data.

    Raises:
        UsageError: for what means nothing to the kind.
    """
    mine, others = (QUESTION_PARTS, FIELDS) if arguments.kind == "rag" else (FIELDS, QUESTION_PARTS)
    if foreign := named_fields(arguments, others):
        legal = ", ".join(f"--field-{part}" for part in mine)
        raise UsageError(f"--field-{next(iter(foreign))} means nothing to init {arguments.kind}, which has {legal}")
    if arguments.questions is not None and arguments.kind != "rag":
        raise UsageError(
            f"init {arguments.kind} takes one file, folder or pattern, but got also {arguments.questions!r}"
        )
    return named_fields(arguments, mine)


def _refuse_unknown(kind: str | None) -> None:
    from pipelines import PIPELINES
    from sweeps.starter import STARTERS

    if kind in STARTERS:
        return
    there = ", ".join(STARTERS)
    if kind is None:
        raise UsageError(f"init needs to know what to sweep ({there}): stockpot init {next(iter(STARTERS))} [DATA]")
    if kind in PIPELINES:
        raise UsageError(f"init has no file to begin a '{kind}' sweep with, only for: {there}")
    guess = close(kind, STARTERS)
    hint = f"did you mean '{guess}'?" if guess else f"there is: {there}"
    if Path(kind).exists():
        hint = f"the pipeline comes first: stockpot init sft {shlex.quote(kind)}"
    raise UsageError(f"init '{kind}' is no pipeline; {hint}")


def _obvious(kind: str) -> str:
    """The one data file of the current folder, or of its folder `data`, to fine-tune on.

    Raises:
        UsageError: if there is none, or several.
    """
    from pipelines.data.files import GZIP, SUFFIXES

    if kind == "rag":
        raise UsageError(
            "init rag needs documents and questions: stockpot init rag CORPUS QUESTIONS\n"
            "for example: stockpot init rag handbook questions.jsonl, with lines such as\n"
            '  {"question": "When is the lift tested?", "documents": ["lift.md"], "answer": "on Mondays"}'
        )
    example = f"stockpot init {kind} data/train.jsonl"
    for folder in (Path("."), Path("data")):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        plain = [path for path in inside if path.is_file() and not path.name.startswith((".", "_"))]
        found = [
            str(path) for path in plain if Path(path.name.lower().removesuffix(GZIP)).suffix in SUFFIXES
            and not path.name.endswith(".schema.json")
        ]  # fmt: skip
        if len(found) == 1:
            print(f"using {clean(found[0])}, the only data file here")
            return found[0]
        if found:
            listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise UsageError(
                f"init needs the data to fine-tune on; here are: {listed}\nfor example: stockpot init {kind} {shlex.quote(found[0])}"
            )
    raise UsageError(
        f"init needs the data to fine-tune on: a file or folder ({', '.join(SUFFIXES)}), and there is none here\n"
        f"for example: {example}, with lines such as\n"
        '  {"prompt": "2 + 2 =", "completion": " 4"}\n'
        '  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
    )


def output_of(name: str, *, force: bool) -> Path:
    """Where the file goes, absolute.

    Raises:
        UsageError: if it can't be written there.
    """
    path = absolute_path(name, Path.cwd())
    if path.is_dir():
        raise UsageError(f"-o {name}: is a folder; give a file, such as {os.path.join(name, 'sweep.yaml')}")
    if not path.parent.is_dir():
        raise UsageError(f"-o {name}: there is no folder {path.parent}")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{name} is there already; --force overwrites it, -o FILE writes another")
    return path


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write the file: over another one aside and moved, else only where there is none.

    Raises:
        UsageError: if it can't be written.
    """
    try:
        if force:
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        else:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(f"{path}: can't be written ({error.strerror or error})") from None


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of a sweep file, or write it."""
    import json

    from sweeps.schema import TITLE, file_schema

    text = json.dumps(file_schema(), indent=1) + "\n"
    if arguments.output is None:
        print(text, end="")
        return 0
    output = output_of(arguments.output, force=True)
    if output.exists() and TITLE.encode() not in output.read_bytes():
        raise UsageError(f"-o {arguments.output}: is there already and holds something else; it stays")
    write_file(output, text, force=True)
    print(
        f"wrote {arguments.output}\nat the top of a sweep file beside it: # yaml-language-server: $schema=./{output.name}"
    )
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Print what a key of the sweep file means, or list all."""
    import json

    from sweeps.explain import find, others, sections
    from sweeps.reference import entry, overview

    note = None
    if arguments.key is None:
        found = list(sections())
    else:
        found, note = find(arguments.key), None
        if not found:
            found, note = _elsewhere(arguments.key)
    if arguments.json:
        print(json.dumps({"note": note, "sections": [section.record() for section in found]}, indent=2))
    elif arguments.key is None:
        print(overview())
    else:
        also = [] if note else others(arguments.key.strip(), found)
        print("\n\n".join(part for part in (note, entry(found), also and f"see also: {', '.join(also)}") if part))
    return 0


def _elsewhere(word: str) -> tuple[list[Section], str]:
    """What another tool's word is here.

    Raises:
        UsageError: when nobody knows the word.
    """
    from sweeps.explain import find, words
    from sweeps.foreign import DISTRIBUTIONS, VALUES, domain_answer, key_answer

    last = word.strip().rpartition(".")[2]
    keys = words()
    tops = [key for key in keys if "." not in key]
    answers = [
        key_answer(last, True, tops),
        key_answer(last, False, tops),
        domain_answer(last),
        DISTRIBUTIONS.get(last),
    ]
    answers += [f"{section}: {mends[last]}" for section, mends in VALUES.items() if last in mends]
    note = next((answer for answer in answers if answer), None)
    if note is None:
        guess = close(last, keys)
        hint = f"did you mean '{guess}'?" if guess else "`stockpot explain` lists all"
        raise UsageError(f"explain: {show(word)} is no key of a sweep file; {hint}")
    named = re.search(r"(?:is|write|does) [`']([a-z_][\w.]*)", note)
    return (find(named.group(1)) if named else []), note
