"""Axolotl's data sets as the four splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.stage import UserError
from sweeps.convert.axolotl_keys import INSTRUCTION_TYPES
from sweeps.convert.base import Addition, Book, Request, near, says
from sweeps.convert.fits import misfit
from sweeps.starter.look import look
from sweeps.starter.sft import splits_of

_PLAIN = {"split": "split", "revision": "revision", "name": "name", "ds_type": "ds_type"}
_FORMATS = ("json", "csv", "parquet", "arrow")
_SO_HERE: dict[str, tuple[Any, ...]] = {
    "chat_template": ("tokenizer_default",),
    "roles_to_train": (["assistant"], ["assistant", "gpt"], ["gpt"]),
    "train_on_eos": ("turn", "last"),
    "message_property_mappings.role": ("role",),
    "message_property_mappings.content": ("content",),
    "message_field_role": ("role",),
    "message_field_content": ("content",),
    "format": ("{instruction}", "{instruction}\n"),
    "no_input_format": ("{instruction}", "{instruction}\n"),
    "trust_remote_code": (False,),
    "drop_system_message": (False,),
}
_LEFT = {
    "message_property_mappings": "messages have the keys role and content; rename them in the data",
    "message_field_role": "messages have the keys role and content; rename them in the data",
    "message_field_content": "messages have the keys role and content; rename them in the data",
    "roles": "roles are used as they are in the rows: system, user, assistant",
    "roles_to_train": "the last assistant message is trained on",
    "train_on_eos": "the end of the answer is trained on",
    "field_input": "a prompt is one column: join the two in the data",
    "field_system": "write system messages into the rows, with type: chat",
    "system_prompt": "write system messages into the rows, with type: chat",
    "system_format": "write system messages into the rows, with type: chat",
    "format": "prompts are used as they are: write the format into the data",
    "no_input_format": "prompts are used as they are: write the format into the data",
    "shards": "limit says how many rows are used",
    "shards_idx": "limit says how many rows are used",
    "preprocess_shards": "nothing is prepared ahead",
    "chat_template": "the tokenizer's own template is used",
    "chat_template_jinja": "the tokenizer's own template is used",
    "data_files": "path names the files; a pattern such as data/*.jsonl names several",
}
_ONLY_LAST = "of each conversation the last answer is trained on, Axolotl trains on all; one row a turn does that here"
_TEMPLATE = (
    "the prompt is the column {prompt} alone, in the chat template; Axolotl adds words of its own, and further columns"
)


def datasets_of(request: Request, book: Book, added: list[Addition]) -> dict[str, Any]:
    """`pipeline.datasets`.

    Raises:
        UserError: if the file names no data, and the user neither.
    """
    config = request.config.data
    streamed = _as_list(config.get("pretraining_dataset"))
    listed = _as_list(config.get("datasets"))
    splits: dict[str, Any] = {}
    if request.data is not None:
        splits, _ = splits_of(request.data, request.type, request.fields, request.output.parent, ())
        for key in ("datasets", "pretraining_dataset"):
            if config.get(key):
                book.changed(key, says("datasets.train.path", splits["train"]["path"]), "--data")
    elif streamed:
        splits["train"] = _pretraining(request, book, streamed[0], "pretraining_dataset")
    elif listed:
        splits["train"] = _data_set(request, book, listed[0], "datasets[0]")
        for place in (f"datasets[{index}]" for index in range(1, len(listed))):
            book.left(place, "a split is one data set, or a pattern of files of one shape: join them first")
    else:
        raise UserError(f"{request.config.name}: names no datasets; --data names a file, a folder or a hub id")
    _held_out(request, book, splits, added)
    return splits


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _held_out(request: Request, book: Book, splits: dict[str, Any], added: list[Addition]) -> None:
    """`tune`, which Axolotl takes from the rows by chance or from a data set of its own."""
    config = request.config.data
    listed, share = _as_list(config.get("test_datasets")), config.get("val_set_size")
    if listed:
        splits["tune"] = _data_set(request, book, listed[0], "test_datasets[0]")
        for place in (f"test_datasets[{index}]" for index in range(1, len(listed))):
            book.left(place, "a split is one data set, or a pattern of files of one shape: join them first")
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1 and not listed:
        splits["tune"] = {"fraction": share}
        why = "by hash of the prompt, so equal prompts stay together and the rows are others than Axolotl's"
        book.changed("val_set_size", says("datasets.tune", splits["tune"]), why)
    elif share is not None:
        book.left("val_set_size", _no_share(share, bool(listed)))
    if "tune" not in splits:
        splits["tune"] = {"fraction": 0.1}
        added.append(Addition("datasets.tune: {fraction: 0.1}", "trials are compared on rows that they did not see"))


def _no_share(share: Any, listed: bool) -> str:
    if listed:
        return "test_datasets is given too"
    return "trials are compared on held-out rows, so some are needed" if not share else "a share is needed, not a count"


def _pretraining(request: Request, book: Book, value: Any, place: str) -> dict[str, Any]:
    """Texts that are streamed."""
    if isinstance(value, str):
        path = near(value, request.output)
        book.carried(place, says("datasets.train.path", path), "streaming: true, type: text")
        return {"path": path, "type": "text", "streaming": True}
    if not isinstance(value, Mapping):
        raise UserError(f"{request.config.name}: {place} must be a path, or a mapping with one")
    inside = f"{place}[0]" if f"{place}[0].path" in book.leaves else place
    found: dict[str, Any] = {"path": near(str(value.get("path")), request.output), "type": "text", "streaming": True}
    book.carried(f"{inside}.path", says("path", found["path"]), "streaming: true")
    for key, ours in (("text_column", "field_text"), ("name", "name"), ("split", "split")):
        if isinstance(value.get(key), str):
            found[ours] = value[key]
            book.carried(f"{inside}.{key}", says(ours, value[key]))
    if value.get("type") is not None:
        book.carried(f"{inside}.type", "type: text")
    return found


def _data_set(request: Request, book: Book, value: Any, place: str) -> dict[str, Any]:
    """One data set; what it says beyond path, type and fields is entered by its own table.

    Raises:
        UserError: if it has no path.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        raise UserError(f"{request.config.name}: {place} has no path; --data names a file, a folder or a hub id")
    found = _path(request, book, value, place)
    found |= _shape(book, value, place, found["path"], request)
    for key, ours in _PLAIN.items():
        if isinstance(value.get(key), str) and f"{place}.{key}" in book.open(f"{place}.{key}"):
            if key == "ds_type" and value[key] not in _FORMATS:
                book.left(f"{place}.{key}", f"the formats are {', '.join(_FORMATS)}")
                continue
            found[ours] = value[key]
            book.carried(f"{place}.{key}", says(ours, value[key]))
    for leaf in book.open(place):
        inner = leaf.removeprefix(f"{place}.").removeprefix("type.")
        if book.leaves[leaf] in _SO_HERE.get(inner, ()):
            book.carried(leaf, why="so it is here")
        elif why := _LEFT.get(inner) or _LEFT.get(inner.partition(".")[0].partition("[")[0]):
            book.left(leaf, why)
    if wrong := misfit("datasets", {"train": found}):
        raise UserError(f"{request.config.name}: {place}: {wrong}")
    return found


def _path(request: Request, book: Book, value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Files under `data_files` come before the loader's name that `path` then is."""
    path, files = value["path"], _as_list(value.get("data_files"))
    if len(files) != 1 or not isinstance(files[0], str):
        book.carried(f"{place}.path", says("path", near(path, request.output)))
        return {"path": near(path, request.output)}
    inside = os.path.join(path, files[0])
    ours = near(inside if path not in _FORMATS and not os.path.exists(files[0]) else files[0], request.output)
    book.carried(f"{place}.data_files", says("path", ours))
    if path not in _FORMATS:
        book.carried(f"{place}.path", says("path", ours))
        return {"path": ours}
    book.carried(f"{place}.path", says("ds_type", path))
    return {"path": ours, "ds_type": path}


def _shape(book: Book, value: Mapping[str, Any], place: str, path: str, request: Request) -> dict[str, Any]:
    """`type` and `field_...`."""
    kind = value.get("type")
    if isinstance(kind, Mapping):
        return _own_type(book, kind, f"{place}.type")
    known = str(kind or "").partition(":")[0]
    word = known.partition(".")[0]
    if word in ("chat_template", "sharegpt"):
        messages = str(value.get("field_messages") or ("conversations" if word == "sharegpt" else "messages"))
        book.changed(f"{place}.type", "type: chat", _ONLY_LAST)
        if value.get("field_messages"):
            book.carried(f"{place}.field_messages", says("field_messages", messages))
        return {"type": "chat"} | ({"field_messages": messages} if messages != "messages" else {})
    if word == "completion" or (word == "" and value.get("field")):
        column = str(value.get("field") or "text")
        if kind:
            book.carried(f"{place}.type", "type: text")
        if value.get("field"):
            book.carried(f"{place}.field", says("field_text", column))
        return {"type": "text"} | ({"field_text": column} if column != "text" else {})
    if known in INSTRUCTION_TYPES:
        prompt, completion = INSTRUCTION_TYPES[known]
        made = {"type": "prompt_completion", "field_prompt": prompt, "field_completion": completion}
        book.changed(f"{place}.type", says("type", "prompt_completion"), _TEMPLATE.format(prompt=prompt))
        return made
    return _seen(book, f"{place}.type", path, request)


def _own_type(book: Book, kind: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A type that the file describes itself."""
    prompt, completion = str(kind.get("field_instruction") or "instruction"), str(kind.get("field_output") or "output")
    for key, ours, column in (
        ("field_instruction", "field_prompt", prompt),
        ("field_output", "field_completion", completion),
    ):
        if kind.get(key) is not None:
            book.carried(f"{place}.{key}", says(ours, column))
    return {"type": "prompt_completion", "field_prompt": prompt, "field_completion": completion}


def _seen(book: Book, place: str, path: str, request: Request) -> dict[str, Any]:
    """The shape of rows whose type is not known here: seen, where they lie on this disk.

    Raises:
        UserError: if they don't.
    """
    here = os.path.join(request.output.parent, path)
    kind = book.leaves.get(place)
    if not Path(here).exists():
        raise UserError(
            f"{request.config.name}: {place}: {kind!s} is no type of rows that is known here, and {path} is not on this disk to be "
            f"looked at; --data {path} with --type and --field-... say what its rows are"
        )
    shape = look(os.path.abspath(here)).shape
    made = {"type": shape.type, **shape.fields}
    if kind is not None:
        book.changed(
            place,
            ", ".join(says(*item) for item in made.items()),
            "seen in the rows; prompts go through the chat template",
        )
    return made
