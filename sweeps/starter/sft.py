"""A sweep file for supervised fine-tuning on the user's own data: what to write, from what was seen of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.base import Messages
from pipelines.config import Datasets
from pipelines.data.files import is_hub_id
from pipelines.stage import UserError
from sweeps.local import absolute_path
from sweeps.starter.base import Request, Starter, laid_out
from sweeps.starter.look import LOOKED_AT, Look, beside, given_shape, look, split_files
from sweeps.starter.naming import sweep_name, written_path
from sweeps.starter.quote import comment, quoted
from sweeps.starter.shapes import Shape

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Small enough to learn with on any machine."""
ROWS_A_STEP, MICRO_BATCH = 16, 4
LENGTHS = (128, 256, 512, 1024, 2048)
CHARACTERS_A_TOKEN = 3.0
"""English has about 4; other languages and code fewer."""
HELD_OUT = {
    "tune": "decides during the sweep; a share of train's prompts, or a file",
    "select": "chooses what goes into the soup",
    "test": "opened once, at the end",
}
"""Split -> what it is for."""
WANTED, SHARE_AT_LEAST, SHARE_AT_MOST, ENOUGH = 50, 0.1, 0.15, 1000
"""Prompts of a held-out split: this many where a share of at most 15 % gives them, never more than 1,000."""
PROMPTS_AT_LEAST = 16
"""With fewer, a split of 15 % is empty more often than not in one of ten data sets."""
TRIALS, TOP = 20, 3
SHORT = 40
"""Characters of an answer that can be compared as a whole."""


@dataclass(frozen=True)
class Plan:
    """What the file will say of the data.

    Attributes:
        looks: split -> what was seen of its own file; none for a hub id.
        paths: split -> its path as the file will write it.
        shape: of the rows.
        share: of the prompts, for each split that has no file of its own.
        skip: whether broken rows are left out.
        drop: whether prompts that stand in two files are dropped from train.
        train: rows of train, about; None when nobody knows.
    """

    looks: Mapping[str, Look]
    paths: Mapping[str, str]
    shape: Shape
    share: float = SHARE_AT_LEAST
    skip: bool = False
    drop: bool = False
    train: int | None = None


def start(request: Request) -> Starter:
    """Look at the data and write the file's text.

    Raises:
        UserError: if the data can't be used as they are; the message says what was seen and what to do.
    """
    plan, found = planned(request.data, request.type, request.fields, request.output.parent)
    name = sweep_name([absolute_path(request.data, Path.cwd())], request.output.parent, "sft")
    return Starter(_text(name, request.base_model or BASE_MODEL, plan), tuple(found))


def planned(data: str, kind: str | None, fields: Mapping[str, str], folder: Path) -> tuple[Plan, list[str]]:
    """What the file will say of the data, and what was seen of them.

    Args:
        data: path or hub id.
        kind: type of the rows; None: seen.
        fields: part of a row -> its column.
        folder: what the paths will be relative to.

    Raises:
        UserError: if the data can't be used as they are.
    """
    given, path = given_shape(kind, fields), absolute_path(data, Path.cwd())
    return _hub(data, given) if is_hub_id(data) and not path.exists() else _plan(path, given, folder)


def _hub(name: str, given: Shape | None) -> tuple[Plan, list[str]]:
    if given is None:
        raise UserError(
            f"{name}: is not on the disk, and nothing is fetched from the hub to be looked at; say what its rows are: --type=chat, --type=text, or "
            "--type=prompt_completion --field-prompt=COLUMN --field-completion=COLUMN"
        )
    return Plan({}, {"train": name}, given), [f"train: {name}, of the hub, not looked at; check --data fetches it"]


def _plan(path: Path, given: Shape | None, folder: Path) -> tuple[Plan, list[str]]:
    """Look at each file, and choose shares that the rows allow."""
    looks: dict[str, Look] = {}
    for split, file in split_files(path).items():
        looks[split] = look(file, given)
        given = given or looks[split].shape
    train = looks["train"]
    plan = Plan(
        looks=looks,
        paths={split: written_path(found.path, folder) for split, found in looks.items()},
        shape=train.shape,
        share=_share(train, sum(split not in looks for split in HELD_OUT)),
        skip=any(found.fit.broken for found in looks.values()),
    )
    found = _found(plan)
    if all(one.exact for one in looks.values()):
        plan = _split(plan, found)
    elif train.rows is not None:
        plan = replace(plan, train=round(train.rows * (1 - plan.share * sum(s not in looks for s in HELD_OUT))))
    if others := beside(path):
        listed = ", ".join(f"{name} as {split}" for split, name in others.items())
        found.append(
            f"beside it lie files of other splits: stockpot init {_kind(plan)} {written_path(str(path.parent), folder)} takes {listed}"
        )
    return plan, found


def _kind(plan: Plan) -> str:
    return "dpo" if plan.shape.type in ("preference", "unpaired_preference") else "sft"


def splits_of(
    data: str, kind: str | None, fields: Mapping[str, str], folder: Path, held_out: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """`datasets` with the splits that are asked for, as `init` would choose them, and what was seen.

    Args:
        data: path or hub id.
        kind: type of the rows; None: seen.
        fields: part of a row -> its column.
        folder: what the paths will be relative to.
        held_out: some of `tune`, `select`, `test`.

    Raises:
        UserError: if the data can't be used as they are.
    """
    plan, found = planned(data, kind, fields, folder)
    splits: dict[str, Any] = {"train": _data(plan, "train")}
    splits |= {name: _data(plan, name) if name in plan.paths else {"fraction": plan.share} for name in held_out}
    return splits | _rules(plan), found


def _data(plan: Plan, split: str) -> dict[str, Any]:
    """A split's own data set as the file will say it."""
    data = plan.shape.data(plan.paths[split], plan.looks[split].ds_type if split in plan.looks else None)
    return data.model_dump(exclude_unset=True, exclude_none=True)


def _rules(plan: Plan) -> dict[str, str]:
    """What is to be done about rows that are broken, or stand in two files."""
    return ({"on_duplicate": "drop_train"} if plan.drop else {}) | ({"on_bad_row": "skip"} if plan.skip else {})


def _share(train: Look, splits: int) -> float:
    """The share of each held-out split that is taken from train.

    Raises:
        UserError: if there are too few prompts to take any from.
    """
    rows = train.rows or LOOKED_AT
    prompts = train.prompts if train.exact else round(rows * train.prompts / train.looked)
    if splits and train.exact and prompts < PROMPTS_AT_LEAST:
        what = f"{rows} {'row' if rows == 1 else 'rows'}"
        if prompts < rows:
            what += f" with {prompts} different {'prompt' if prompts == 1 else 'prompts'}"
        raise UserError(
            f"{train.path}: has {what}; at least {PROMPTS_AT_LEAST} different prompts are needed, because tune, select and "
            "test are taken from them (a folder with train, tune, select and test files brings its own)"
        )
    share = min(SHARE_AT_MOST, max(SHARE_AT_LEAST, WANTED / max(1, prompts)))
    return float(f"{min(share, ENOUGH / max(1, prompts)):.1g}") if prompts > 10 * ENOUGH else round(share, 2)


def _split(plan: Plan, found: list[str]) -> Plan:
    """Split the rows as the sweep will; prompts that stand in two files are dropped from train, and that is said.

    Raises:
        UserError: if a split is empty.
    """
    from pipelines.splits import load_splits

    try:
        splits = load_splits(_datasets(plan))
    except UserError as error:
        if "drop_train" not in str(error):
            raise
        plan = replace(plan, drop=True)
        splits = load_splits(_datasets(plan))
        found.append("prompts of train that stand in another split's file are dropped from train (on_duplicate)")
    sizes = {name: len(splits.rows(name)) for name in ("train", *HELD_OUT)}
    found.append("splits: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    if small := [name for name in HELD_OUT if sizes[name] < WANTED]:
        found.append(f"{', '.join(small)}: under {WANTED} rows show only large differences; more data would help")
    return replace(plan, train=sizes["train"])


def _datasets(plan: Plan) -> Datasets:
    held = {name: {"fraction": plan.share} for name in HELD_OUT}
    files = {name: plan.shape.data(seen.path, seen.ds_type) for name, seen in plan.looks.items()}
    return Datasets.model_validate({**held, **files, **_rules(plan)})


def _found(plan: Plan) -> list[str]:
    """What was seen, in sentences."""
    said = []
    for split, seen in plan.looks.items():
        rows = "an unknown number of" if seen.rows is None else f"{'' if seen.exact else 'about '}{seen.rows:,}"
        said.append(f"{split}: {plan.paths[split]}, {rows} rows")
        if seen.fit.broken:
            said.append(
                f"{seen.fit.broken} of the {seen.looked:,} rows looked at are broken and will be left out "
                f"(on_bad_row: skip), such as {seen.fit.bad[0]}"
            )
    columns = " and ".join(f"{name!r} ({part})" for part, name in plan.shape.columns.items())
    said.append(f"rows: {plan.shape.type}, from {columns}")
    if unused := plan.looks["train"].unused:
        said.append("not used: " + ", ".join(map(repr, unused[:12])) + (", ..." if len(unused) > 12 else ""))
    return said


def steps(train: int | None) -> tuple[int, float | None]:
    """Optimizer steps of a run, and passes over train that they are: three over few rows, one over many.

    Steps are 27 at least and 900 at most, and a multiple of 9, so that two rungs with eta 3 come out even.
    """
    if train is None:
        return 270, None
    passes = 3 if train < 2_000 else 2 if train < 10_000 else 1
    wanted = math.ceil(passes * train / ROWS_A_STEP / 9) * 9
    total = min(900, max(27, wanted))
    return total, total * ROWS_A_STEP / train


def lengths(plan: Plan) -> tuple[int, int]:
    """`sequence_len`, and the characters of a long row (99 % are shorter); 0 when no row was seen."""
    rows = plan.looks["train"].fit.rows if plan.looks else []
    if not rows:
        return 1024, 0
    answers = [max(len(row.completion), len(row.rejected or "")) for row in rows]
    characters = sorted(_characters(row.prompt) + answer for row, answer in zip(rows, answers, strict=True))
    long = characters[math.ceil(0.99 * len(characters)) - 1]
    tokens = long / CHARACTERS_A_TOKEN + 32
    return next((length for length in LENGTHS if length >= tokens), LENGTHS[-1]), long


def _characters(prompt: str | Messages | None) -> int:
    if prompt is None or isinstance(prompt, str):
        return len(prompt or "")
    return sum(len(message["content"]) for message in prompt)


def _text(name: str, base_model: str, plan: Plan) -> str:
    total, passes = steps(plan.train)
    length, long = lengths(plan)
    over = "" if passes is None else f": {passes:.2g} passes over the {plan.train:,} rows of train"
    chars = f"99 of 100 rows have at most {long:,} characters" if long else "longer rows are cut, and counted"
    lines: list[tuple[str, str]] = [
        (f"name: {name}", "also the folder of its results, under ./stockpot-runs"),
        ("pipeline:", "what one trial is; any key below can be swept"),
        ("  type: sft", "supervised fine-tuning"),
        (f"  base_model: {quoted(base_model)}", "hub id, folder, GGUF file, package://..., sweep://NAME/best"),
        *datasets_lines(plan),
        ("  adapter: lora", "none: train all weights"),
        (f"  micro_batch_size: {MICRO_BATCH}", "rows in one forward pass; halved where memory runs out"),
        (f"  gradient_accumulation_steps: {ROWS_A_STEP // MICRO_BATCH}", f"{ROWS_A_STEP} rows an optimizer step"),
        (f"  max_steps: {total}", f"optimizer steps of a whole run{over}"),
        ("  warmup_ratio: 0.1", "share of the steps in which the learning rate rises"),
        (f"  sequence_len: {length}", f"tokens a row at most; {chars}"),
        ("  # precision: bf16", "faster on GPUs, and on CPUs with bf16 instructions"),
        ("parameters:", "what is searched"),
        ("  learning_rate: {distribution: log_uniform_values, min: 1.0e-5, max: 2.0e-3}", ""),
        ("  lora_r: [8, 16, 32]", "a list is a choice; rank of the adapter"),
        ("method: {type: tpe, seed: 0}", "how configurations are chosen: random, grid, tpe, gp, ..."),
        ("metric: loss", "of the answers in tune, a token; smaller is better"),
        (f"budget: {{trials: {TRIALS}}}", "or hours: H, or both"),
        (
            f"early_terminate: {{type: asha, min: {total // 9}, eta: 3}}",
            f"one in 3 goes on at {total // 9}, {total // 3}",
        ),
        *_evaluate(plan),
        (f"soup: {{method: greedy, top: {TOP}}}", "merges the best runs where that helps on select"),
    ]
    return laid_out("A sweep of supervised fine-tunes", lines)


def datasets_lines(plan: Plan) -> list[tuple[str, str]]:
    """The `datasets` section, a line a split, with what each is for."""
    lines = [("  datasets:", ""), (f"    train: {_data_text(plan, 'train')}", "")]
    for split, meaning in HELD_OUT.items():
        held = _data_text(plan, split) if split in plan.paths else f"{{fraction: {plan.share:g}}}"
        lines.append((f"    {split}: {held}", meaning))
    if plan.drop:
        lines.append(("    on_duplicate: drop_train", "prompts of train that stand in another split's file"))
    if plan.skip:
        bad = next(seen.fit for seen in plan.looks.values() if seen.fit.broken)
        lines.append(("    on_bad_row: skip", comment(bad.bad[0])))
    return lines


def _data_text(plan: Plan, split: str) -> str:
    return "{" + ", ".join(f"{key}: {quoted(str(value))}" for key, value in _data(plan, split).items()) + "}"


def _evaluate(plan: Plan) -> list[tuple[str, str]]:
    """A line for answers that can be right or wrong: JSON objects, or a few words."""
    rows = plan.looks["train"].fit.rows if plan.looks else []
    if plan.shape.type == "text" or not rows:
        return []
    answers = [row.completion.strip() for row in rows[:1000]]
    if all(text.startswith("{") and text.endswith("}") for text in answers):
        entry, why = "{type: json_fields, when: final}", "share of the fields of a generated JSON answer that are right"
    elif sorted(map(len, answers))[9 * len(answers) // 10] <= SHORT:
        entry, why = "{type: exact_match, when: final}", "share of generated answers that equal the row's"
    else:
        return []
    return [(f"evaluate: [{entry}]", why)]
