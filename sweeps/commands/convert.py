"""`convert`: another tool's configuration as a sweep file, with a list of what became of each of its keys."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.first import named_fields, output_of, write_file
from sweeps.commands.places import UsageError
from sweeps.convert import CONVERTERS, converter_of, recognise
from sweeps.glyphs import clean
from sweeps.problems import SpecError

if TYPE_CHECKING:
    from sweeps.convert.base import Conversion, Entry, Foreign

TOOLS = {"axolotl": "Axolotl", "wandb": "W&B"}
_KINDS = {"carried": "carried over", "changed": "changed in meaning", "left": "not carried over"}
_WIDEST = 44


def convert(arguments: argparse.Namespace) -> int:
    """Read a foreign configuration, write the sweep file if it passes the door, and list what became of each key."""
    from sweeps.convert.base import Request

    output = output_of(arguments.output, force=arguments.force)
    config = _read(arguments.file)
    sweep = _read(arguments.sweep) if arguments.sweep else None
    if output in {Path(one.name).resolve() for one in (config, sweep) if one}:
        raise UsageError(f"-o {arguments.output}: is the file to be converted; -o FILE writes another")
    tool = arguments.tool or _recognised(config)
    done = converter_of(tool)(
        Request(
            config=config, output=output, sweep=sweep, base_model=arguments.base_model, data=arguments.data,
            type=arguments.type, fields=named_fields(arguments), import_path=arguments.import_path, total=arguments.total,
        )
    )  # fmt: skip
    unread = _pass(done.data, output.parent, arguments.file)
    if unread:
        done = replace(done, advice=(*done.advice, unread))
    write_file(output, _text(done, tool, [config, *([sweep] if sweep else [])]), force=arguments.force)
    if arguments.json:
        print(json.dumps(_record(done, tool, arguments.output), indent=2))
    else:
        print("\n".join(clean(line) for line in _told(done)))
        also = " --data" if unread else ""
        print(f"wrote {clean(arguments.output)}\nnext: stockpot check {clean(shlex.quote(arguments.output))}{also}")
    return 0


def _pass(data: dict[str, Any], folder: Path, name: str) -> str:
    """Take what was made through the door, and say what the door can't know before data of the hub are fetched.

    Raises:
        UsageError: if it makes no sweep.
    """
    from sweeps.convert.write import write
    from sweeps.load import load_text

    unread = _length_unread(data, folder)
    if unread:
        data = {**data, "pipeline": {**data["pipeline"], "max_steps": 1000}}
        for section in {"pipeline", "parameters"} & data.keys():
            data[section] = {key: value for key, value in data[section].items() if key != "num_epochs"}
        if not data.get("parameters"):
            data.pop("parameters", None)
    try:
        load_text(write(data, ()).encode(), folder)
    except SpecError as error:
        raise UsageError(_unfit(error, name)) from None
    return "how long a run is follows from the rows, which check --data and submit fetch from the hub" if unread else ""


def _length_unread(data: dict[str, Any], folder: Path) -> bool:
    """Whether runs are measured in epochs of rows that only the hub has."""
    from pipelines.data.files import is_hub_id

    said = {**data["pipeline"], **data.get("parameters", {})}
    splits = [split for split in said.get("datasets", {}).values() if isinstance(split, dict)]
    paths = [split["path"] for split in splits if "path" in split]
    return "max_steps" not in said and any(is_hub_id(path) and not (folder / path).exists() for path in paths)


def _read(name: str) -> Foreign:
    """A foreign file.

    Raises:
        UsageError: if it can't be read, or is no mapping.
        SpecError: if it is no YAML.
    """
    from sweeps.convert.base import Foreign, said
    from sweeps.yaml_source import read

    try:
        document = read(Path(name).expanduser().read_bytes())
    except OSError as error:
        raise UsageError(f"{name}: can't be read ({error.strerror or error})") from None
    if document.problems:
        raise SpecError(document.problems, name)
    if not isinstance(document.data, dict):
        raise UsageError(f"{name}: is no mapping of keys to values, so it is no configuration")
    return Foreign(name, said(document.data))


def _recognised(config: Foreign) -> str:
    if "pipeline" in config.data:
        raise UsageError(
            f"{config.name}: is a sweep file of Stockpot already: stockpot check {shlex.quote(config.name)}"
        )
    tool = recognise(config.data)
    if tool is None:
        raise UsageError(
            f"{config.name}: has neither base_model (Axolotl) nor parameters (W&B); --from {'|'.join(CONVERTERS)} says what it is"
        )
    return tool


def _unfit(error: SpecError, name: str) -> str:
    """The door's complaints about what was made, in places of the sweep file that was not written."""
    lines = [f"{name}: what it says makes no sweep that could run; nothing was written"]
    lines += [f"  {problem.place}: {problem.message}" for problem in error.problems]
    if any(problem.place.startswith(("pipeline.datasets", "pipeline.base_model")) for problem in error.problems):
        lines.append("  --data DATA and --base-model M say others; paths are looked up from the current folder")
    return "\n".join(lines)


def _text(done: Conversion, tool: str, files: Sequence[Foreign]) -> str:
    """The sweep file, with what differs from the original above it."""
    from sweeps.convert.write import write

    named = " and ".join(one.name for one in files)
    head = [f"Made from {TOOLS[tool]}'s {named} by `stockpot convert`."]
    for kind in ("changed", "left"):
        listed = [entry for entry in done.entries if entry.kind == kind]
        if listed:
            head += [
                "",
                f"{_KINDS[kind].capitalize()}:",
                *(f"  {what}{f' -- {notes}' if notes else ''}" for what, notes in _grouped(listed)),
            ]
    if done.advice:
        head += ["", *done.advice]
    return write(done.data, head)


def _grouped(entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """What the file says and what became of it; neighbours below one key with one fate are one line."""
    from sweeps.convert.base import brief

    def fate(entry: Entry) -> tuple[str, str, str, str]:
        return entry.file, entry.key.rpartition(".")[0], entry.ours or "", entry.why

    for (_, parent, ours, why), same in itertools.groupby(entries, fate):
        group = list(same)
        notes = "; ".join(part for part in (ours, why) if part)
        if len(group) == 1 or not parent:
            yield from ((f"{one.key}: {brief(one.value)}", notes) for one in group)
        else:
            inside = ", ".join(f"{one.key.rpartition('.')[2]}: {brief(one.value)}" for one in group)
            yield f"{parent}: {{{inside}}}", notes


def _told(done: Conversion) -> list[str]:
    """The lists, for people."""
    lines: list[str] = []
    for kind, title in _KINDS.items():
        listed = [entry for entry in done.entries if entry.kind == kind]
        if not listed:
            continue
        lines.append(f"{title} ({len(listed)})")
        grouped = list(_grouped(listed))
        width = min(_WIDEST, max(len(what) for what, _ in grouped))
        lines += [f"  {what:{width}}  {notes}".rstrip() for what, notes in grouped]
    if done.added:
        lines.append(f"added ({len(done.added)})")
        lines += [f"  {one.ours}  # {one.why}" for one in done.added]
    return [*lines, *(f"note: {one}" for one in done.advice)]


def _record(done: Conversion, tool: str, output: str) -> dict[str, Any]:
    kinds = {"carried": "carried", "changed": "changed", "left": "not_carried"}
    return {
        "from": tool,
        "output": output,
        **{name: [entry.record() for entry in done.entries if entry.kind == kind] for kind, name in kinds.items()},
        "added": [{"ours": one.ours, "why": one.why} for one in done.added],
        "advice": list(done.advice),
    }
