"""lm-evaluation-harness (Gao et al. 2024) over our language models: its tasks are built and judged by it, and asked of a `LanguageModel`.

Nothing of its own loads a model. Its global seeding, its bootstraps and its request caches are left out; what a task
draws while it is built is drawn as `lm_eval.simple_evaluate` draws it, and the process's random states are put back.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.task
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from evaluators.base import GenerationRequest, LanguageModel, Split, UserError, chat_prompt

FEWSHOT_SEED = 1234
"""lm-evaluation-harness's own default, for its few-shot examples and NumPy; Python's generator gets 0."""
NEW_TOKENS = 256
"""Tokens generated where neither task nor entry says how many: lm-evaluation-harness's own default."""
GREEDY = {"until", "do_sample", "temperature", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
"""Generation settings that are understood."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)
lm_eval.api.task.tqdm = functools.partial(lm_eval.api.task.tqdm, disable=True)  # logs are read as lines


class AskedModel(LM):
    """A `LanguageModel` as lm-evaluation-harness sees one.

    Args:
        model: who answers.
        max_new_tokens: replaces what tasks say; None leaves it.
    """

    tokenizer_name = ""

    def __init__(self, model: LanguageModel, max_new_tokens: int | None = None) -> None:
        super().__init__()
        self._model = model
        self._max_new_tokens = max_new_tokens

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """See `LM`."""
        return self._model.loglikelihood([(request.args[0], request.args[1]) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """See `LM`."""
        return [nats for nats, _ in self._model.loglikelihood([("", request.args[0]) for request in requests])]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """See `LM`; of a request that is repeated each copy draws with a seed of its own.

        Raises:
            UserError: for a task that generates in a way that is not supported.
        """
        seen: Counter[str] = Counter()
        asked = []
        for request in requests:
            text, settings = request.args
            key = json.dumps([text, settings], sort_keys=True, default=str)
            asked.append(self._request(text, dict(settings), seen[key], str(request.task_name)))
            seen[key] += 1
        return [answer.text for answer in self._model.generate(asked)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """See `LM`."""
        return chat_prompt(self._model, tuple(chat_history), opened=add_generation_prompt)

    def _request(self, text: str, settings: dict[str, Any], seed: int, task: str) -> GenerationRequest:
        foreign = sorted(set(settings) - GREEDY)
        sampled = bool(settings.get("do_sample", False)) and float(settings.get("temperature") or 0.0) > 0
        if foreign and (sampled or set(foreign) - {"top_p", "top_k"}):
            raise UserError(
                f"lm_eval: {task} generates with {', '.join(foreign)}, which is not supported; leave it out"
            )
        until = settings.get("until") or []
        limits = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        own = next((int(settings[name]) for name in limits if settings.get(name)), NEW_TOKENS)
        return GenerationRequest(
            text,
            self._max_new_tokens or own,
            temperature=float(settings["temperature"]) if sampled else 0.0,
            seed=seed,
            stop=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        )


@dataclass(frozen=True)
class Judged:
    """What lm-evaluation-harness made of one leaf task.

    Attributes:
        task: its name.
        metric: which number: `exact_match`.
        filter: of which answers: `strict-match`.
        larger_is_better: the metric's direction.
        values: (n,) one a document, as the task's `process_results` gives them; None where it gives none.
        total: the metric over all documents.
        aggregate: makes `total` of values.
        documents: (n,) their hashes.
        samples: JSON-ready records of all filters, as lm-evaluation-harness logs them.
    """

    task: str
    metric: str
    filter: str
    larger_is_better: bool
    values: tuple[Any, ...]
    total: float
    aggregate: Callable[[Sequence[Any]], float]
    documents: tuple[str, ...]
    samples: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Loaded:
    """A name with the leaf tasks it stands for.

    Attributes:
        name: of a task, a group or a tag.
        tasks: its leaf tasks.
        by_size: whether a document counts the same in all of them (a group's `weight_by_size`); else a task does.
    """

    name: str
    tasks: tuple[Task, ...]
    by_size: bool


@functools.lru_cache(maxsize=4)
def _manager(include_path: str | None, defaults: bool) -> TaskManager:
    """The index of task files; data files that those of `include_path` name are made absolute."""
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager(include_path=include_path, include_defaults=defaults)
    own = None if include_path is None else Path(include_path).resolve()
    for entry in manager.task_index.values():
        if own is None or entry.yaml_path is None or own not in Path(entry.yaml_path).resolve().parents:
            continue
        config = load_yaml(entry.yaml_path, resolve_func=True)
        if isinstance(files := (config.get("dataset_kwargs") or {}).get("data_files"), str | list | dict):
            config["dataset_kwargs"] = {
                **config["dataset_kwargs"],
                "data_files": _absolute(files, entry.yaml_path.parent),
            }
            entry.cfg, entry.yaml_path = config, None
    return manager


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _absolute(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, folder) for value in files]
    beside = folder / str(files)
    return str(beside.resolve()) if beside.exists() else files


def load(name: str, include_path: str | None, num_fewshot: int | None, split: Split) -> Loaded | None:
    """The tasks of a name for one split of a sweep; None where none of them has documents for it.

    On `test` a task has the documents that it is published on; on `tune` and `select` those of the validation split that
    it has beside a test split.

    Raises:
        UserError: for an unknown name, or data that can't be had.
    """
    manager = _manager(include_path, False) if include_path is not None else None
    if manager is None or name not in manager.task_index:
        manager = _manager(include_path, True)
    if name not in manager.task_index:
        raise UserError(f"lm_eval: lm-evaluation-harness has no task '{name}' (lm_eval ls tasks lists them)")
    try:
        built = manager.load([name])
    except (OSError, ValueError) as error:  # what `datasets` raises where data is not there or can't be fetched
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"lm_eval: the data of {name} can't be had: {first}") from error
    tasks = [task for task in built["tasks"].values() if _on(task, split)]
    for task in tasks:
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"lm_eval: {task.task_name} runs code that the model writes, which is not supported")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"lm_eval: {task.task_name} shows images or sounds, which is not supported")
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", num_fewshot)
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return Loaded(name, tuple(tasks), _by_size(built["groups"].get(name))) if tasks else None


def _by_size(group: Group | None) -> bool:
    listed = (group.aggregate_metric_list or []) if group is not None else []
    return bool(listed and listed[0].weight_by_size)


def _on(task: Task, split: Split) -> bool:
    """Turn a task to the documents of a split; whether it has any."""
    if split == "test":
        return True
    if split == "train" or not (task.has_test_docs() and task.has_validation_docs()):
        return False
    task.set_config("test_split", None)
    return True


def judge(
    model: AskedModel, tasks: Sequence[Task], split: Split, *, metric: str | None, limit: int | None, chat: bool
) -> list[Judged]:
    """Ask and judge leaf tasks.

    Args:
        model: who answers.
        tasks: with documents of the split.
        split: `tune` and `select` share a task's documents.
        metric: `METRIC` or `METRIC,FILTER`; None takes each task's first.
        limit: documents of each task at most, the first ones.
        chat: whether the chat format is used.

    Raises:
        UserError: if a task has no such metric, or no documents.
    """
    chosen = {task.task_name: _documents(task, split, limit) for task in tasks}
    empty = next((name for name, places in chosen.items() if not places), None)
    if empty is not None:
        raise UserError(f"lm_eval: {empty} has no documents for {split}")
    found = evaluate(
        lm=model,
        task_dict={"tasks": {task.task_name: task for task in tasks}},
        samples=chosen,
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    assert found is not None, "the first rank gets the results, and there is no other"
    return [_judged(task, found["results"][task.task_name], found["samples"][task.task_name], metric) for task in tasks]


def _judged(task: Task, results: Mapping[str, Any], samples: Sequence[dict[str, Any]], asked: str | None) -> Judged:
    """The metric that is asked for, of one task.

    Raises:
        UserError: if it has none of that name.
    """
    known = [key for key in results if "," in key and not key.partition(",")[0].endswith("_stderr")]
    key = next((key for key in known if asked in (None, key, key.partition(",")[0])), None)
    if key is None:
        raise UserError(f"lm_eval: {task.task_name} has no metric '{asked}'; there are: {' '.join(known)}")
    metric, _, by = key.partition(",")
    mine = [sample for sample in samples if sample["filter"] == by]
    return Judged(
        task.task_name,
        metric,
        by,
        bool(task.higher_is_better().get(metric, True)),
        tuple(sample.get(metric) for sample in mine),
        float(results[key]),
        task.aggregation().get(metric, mean),
        tuple(document_hash(sample["doc"]) for sample in mine),
        tuple(samples),
    )


def _documents(task: Task, split: Split, limit: int | None) -> list[int]:
    """Places of a task's documents that belong to a split, at most `limit`, the first ones."""
    documents = enumerate(task.eval_docs)
    mine = (
        place
        for place, one in documents
        if split == "test" or (int(document_hash(one), 16) % 2 == 0) == (split == "tune")
    )
    return list(itertools.islice(mine, limit))


def document_hash(document: Any) -> str:
    """16 hex digits of a document's content."""
    body = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Python's and NumPy's global generators as lm-evaluation-harness seeds them; afterwards they are as before.

    All that concerns a task stands within: even to ask a task's name draws from Python's.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
