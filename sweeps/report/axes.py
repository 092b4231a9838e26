"""The axes of a search space as a page draws them: each dotted path with its scale and its range."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.space import Choice, Interval, Space


@dataclass
class AxisDraft:
    """An axis while it is gathered from several arms and trials."""

    path: str
    numeric: bool = True
    log: bool = False
    low: float | None = None
    high: float | None = None
    values: list[Any] = field(default_factory=list)
    when: list[str] = field(default_factory=list)
    always: bool = False

    def add(self, domain: Choice | Interval, when: str) -> None:
        """Take in a domain; `when` says which arm it belongs to, empty for all."""
        self.always = self.always or not when
        if when and when not in self.when:
            self.when.append(when)
        if isinstance(domain, Interval):
            self.log = self.log or domain.log
            self.low = domain.low if self.low is None else min(self.low, domain.low)
            self.high = domain.high if self.high is None else max(self.high, domain.high)
        else:
            self.numeric = False
            self.extend(domain.values)

    def extend(self, values: Iterable[Any]) -> None:
        """Values that are there besides."""
        self.values += [value for value in values if not any(same(value, known) for known in self.values)]

    def record(self, label: str) -> dict[str, Any]:
        """JSON-ready: `kind` is `linear`, `log` or `category`."""
        values = [value for value in self.values if value is not None]
        plain = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        when = [] if self.always else self.when
        if self.numeric and self.low is not None and self.high is not None and len(plain) == len(values):
            low, high = min([self.low, *plain]), max([self.high, *plain])
            kind = "log" if self.log and low > 0 else "linear"
            return {"path": self.path, "label": label, "kind": kind, "low": low, "high": high, "when": when}
        if len(plain) == len(values):
            values = sorted(values)
        return {"path": self.path, "label": label, "kind": "category", "values": values, "when": when}


def same(a: Any, b: Any) -> bool:
    """Equal as configuration values: true and 1 differ."""
    return type(a) is type(b) and bool(a == b)


def axes_of(space: Space | None, parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every path that a trial may set, in the file's order; paths that trials set besides come last.

    Args:
        space: the search space; None where the file can't be loaded.
        parameters: each trial's, dotted path -> value.
    """
    drafts: dict[str, AxisDraft] = {}
    if space is not None:
        _gather(space, drafts, "")
    for path in dict.fromkeys(path for each in parameters for path in each):
        seen = [each[path] for each in parameters if path in each]
        if path not in drafts:
            drafts[path] = _observed(path, seen)
        elif drafts[path].numeric:
            drafts[path].values += seen
        else:
            drafts[path].extend(seen)
    ends = [path.removesuffix(".type").rpartition(".")[2] for path in drafts]
    return [
        draft.record(end if ends.count(end) == 1 else path)
        for (path, draft), end in zip(drafts.items(), ends, strict=True)
    ]


def _gather(space: Space, drafts: dict[str, AxisDraft], when: str) -> None:
    def draft(path: str) -> AxisDraft:
        return drafts.setdefault(path, AxisDraft(path))

    for axis in space.axes:
        draft(axis.path).add(axis.domain, when)
    for group in space.groups:
        for path in group.rows[0]:
            draft(path).add(Choice(tuple(row[path] for row in group.rows)), when)
    for branch in space.branches:
        draft(branch.key).add(branch.domain, when)
        for arm, inner in branch.arms.items():
            here = f"{branch.path.rpartition('.')[2]} = {arm}"
            _gather(inner, drafts, f"{when}, {here}" if when else here)


def _observed(path: str, seen: Sequence[Any]) -> AxisDraft:
    draft = AxisDraft(path, always=True)
    numbers = [value for value in seen if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(seen) and len(set(map(json.dumps, numbers))) > 6:
        draft.add(Interval(min(numbers), max(numbers), log=min(numbers) > 0 and max(numbers) / min(numbers) > 100), "")
        draft.values = list(seen)
    else:
        draft.numeric = False
        draft.extend(seen)
    return draft
