"""The reproducibility checklist of Eimer et al. (2023, arXiv 2306.01324), filled in from the ledger.

Every item has an answer in words; what the ledger does not know is said to be unknown. `answer` is `yes`, `no`, `partly` or
`unknown`, `said` is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.board import Leaderboard
from sweeps.board_text import score_text
from sweeps.commands.story import role, tuned_after
from sweeps.markdown import escaped
from sweeps.report.source import Source, spec_of

Answer = tuple[str, str]
SOURCE = "Eimer, Lindauer, Raileanu: Hyperparameters in Reinforcement Learning and How To Tune Them (ICML 2023)"
SHOWN = 12
"""Values of a choice, or hosts, that are listed."""
TIMED = ("seconds", "latency", "_per_second")


@dataclass(frozen=True)
class _Facts:
    """What the answers are made from."""

    source: Source
    board: Leaderboard
    spec: Mapping[str, Any]
    axes: Sequence[Mapping[str, Any]]
    reproduction: Mapping[str, Any]

    @property
    def pipeline(self) -> Mapping[str, Any]:
        return self.part("pipeline")

    def part(self, name: str) -> Mapping[str, Any]:
        found = self.spec.get(name)
        return found if isinstance(found, Mapping) else {}

    def seeds(self, name: str) -> list[int]:
        return list(self.part("seeds").get(name) or ())


def checklist(
    source: Source, board: Leaderboard, axes: Sequence[Mapping[str, Any]], reproduction: Mapping[str, Any]
) -> list[dict[str, str]]:
    """The items with their answers: `{group, item, answer, said}`, none of them empty.

    Args:
        source: the opened sweep.
        board: its leaderboard.
        axes: the space, as `axes_of` has it.
        reproduction: as `sweeps.report.facts.reproduction` makes it.
    """
    record = spec_of(source)
    inner = record.get("spec", record)
    facts = _Facts(source, board, inner if isinstance(inner, Mapping) else {}, axes, reproduction)
    return [
        {"group": group, "item": item, "answer": answer, "said": said}
        for group, items in GROUPS.items()
        for item, fill in items.items()
        for answer, said in (fill(facts),)
    ]


def to_markdown(name: str, items: Sequence[Mapping[str, str]]) -> str:
    """The checklist as a Markdown text."""
    lines = [
        f"# Reproducibility checklist of the sweep {escaped(name)}",
        "",
        f"After {SOURCE}; filled in from the ledger.",
    ]
    for group in dict.fromkeys(item["group"] for item in items):
        lines += ["", f"## {group}", ""]
        for item in (one for one in items if one["group"] == group):
            mark = {"yes": "x", "no": " "}.get(item["answer"], "~")
            lines.append(f"- [{mark}] **{item['item']}** {item['answer']}: {escaped(item['said'])}")
    return "\n".join(lines) + "\n"


def _separated(facts: _Facts) -> Answer:
    sets = facts.pipeline.get("datasets") or facts.pipeline.get("questions")
    seeds = f"tuning seeds {_listed(facts.seeds('tune'))}, test seeds {_listed(facts.seeds('test'))}"
    if not isinstance(sets, Mapping):
        return "unknown", f"the pipeline brings its data itself, so that the ledger does not know the splits; {seeds}"
    there = {split: _one_line(sets.get(split)) for split in ("train", "tune", "select", "test") if sets.get(split)}
    said = "; ".join([*(f"{split}: {what}" for split, what in there.items()), seeds])
    if "test" not in there:
        return "no", f"there is no test split; {said}"
    return ("yes" if facts.seeds("test") else "partly"), said + (
        "" if facts.seeds("test") else " (training was not repeated with seeds of the test's own)"
    )


def _untouched(facts: _Facts) -> Answer:
    board = facts.board
    if board.tuned_after:
        return "no", tuned_after(board)[0]
    openings = facts.reproduction["ledger"]["openings"]
    if not openings:
        return "yes", "test was never opened"
    told = "; ".join(f"by {one['by']} for {', '.join(one['candidates']) or 'nothing'}" for one in openings)
    times = "once" if len(openings) == 1 else f"{len(openings)} times"
    return "yes", f"opened {times}, and no trial reported after that: {told}"


def _package(facts: _Facts) -> Answer:
    method, rule = facts.part("method"), facts.part("early_terminate")
    version = facts.reproduction["versions"].get("stockpot", "of a version that was not recorded")
    if not method:
        return "unknown", f"Stockpot {version}; the method was not recorded"
    said = f"Stockpot {version}, method {_one_line(method)}"
    return "yes", f"{said}; early termination {_one_line(rule) if rule else 'none'}"


def _space(facts: _Facts) -> Answer:
    if not facts.axes:
        return "yes", "nothing was searched: every key is as the file has it"
    return "yes", "; ".join(_axis(axis) for axis in facts.axes)


def _axis(axis: Mapping[str, Any]) -> str:
    if axis["kind"] == "category":
        values = [str(value) for value in axis["values"][:SHOWN]]
        more = len(axis["values"]) - len(values)
        said = f"{axis['path']}: one of {', '.join(values)}" + (f" and {more} more" if more > 0 else "")
    else:
        said = f"{axis['path']}: {axis['low']:g} to {axis['high']:g}, {'log' if axis['kind'] == 'log' else 'linear'}"
    return said + (f" (where {' or '.join(axis['when'])})" if axis["when"] else "")


def _same_space(facts: _Facts) -> Answer:
    own = [axis["path"] for axis in facts.axes if axis["when"]]
    shared = [axis["path"] for axis in facts.axes if not axis["when"]]
    if not own:
        return "yes", "all configurations are drawn from the one space above"
    said = f"shared by all, each with one range: {', '.join(shared) or 'none'}; of single arms: {', '.join(own)}"
    return "yes", said


def _cost(facts: _Facts) -> Answer:
    seconds = sum(row.seconds for row in facts.board.trials if row.seconds == row.seconds)
    resource = sum(row.resource or 0 for row in facts.board.trials)
    unit = "questions" if facts.pipeline.get("type") == "rag" else "steps"
    unit = "units" if facts.pipeline.get("type") == "custom" else unit
    return (
        "yes",
        f"{unit} of the pipeline ({resource:g} in all) and worker seconds ({seconds:.0f} in all), per trial in the report",
    )


def _budget(facts: _Facts) -> Answer:
    budget = {key: value for key, value in facts.part("budget").items() if value is not None}
    if not budget:
        return "unknown", "the budget was not recorded"
    total = facts.source.plan.milestones[-1]
    early = facts.part("early_terminate").get("type") not in (None, "none")
    said = f"{_one_line(budget)}; every configuration may use up to {total} of the pipeline's resource with each tuning seed"
    return "yes", said + (", by one rule of early termination for all" if early else " and does")


def _baseline_budget(facts: _Facts) -> Answer:
    given = next((one for one in facts.source.state.candidates if one["role"] == "baseline"), None)
    if given is None:
        return "no", "there is no baseline in the final step" if facts.board.finals else "there was no final step yet"
    if "config" in given:
        return "partly", "the baseline was trained as long as a configuration of the sweep, but it was not tuned"
    if "run" in given:
        return "partly", f"the baseline is one configuration, {given['run']}; it was not tuned"
    return "no", f"the baseline {given.get('model')} is the model as it was before: neither trained nor tuned here"


def _hardware_comparable(facts: _Facts) -> Answer:
    hosts = list(dict.fromkeys(str(driver.get("host")) for driver in facts.reproduction["drivers"]))
    timed = [m.name for m in facts.board.metrics if any(word in m.name for word in TIMED)]
    hours = facts.part("budget").get("hours")
    if not timed and hours is None:
        return "yes", "nothing that decides is measured in time: the budget counts trials and the pipeline's resource"
    why = "; ".join(([f"the budget is {hours:g} hours"] if hours is not None else []) + [f"{m} decides" for m in timed])
    if len(hosts) == 1 and facts.source.state.driver.get("address") is None:
        return "yes", f"{why}; all of it ran on one machine, {hosts[0]}"
    return "unknown", f"{why}; driven from {_listed(hosts)}, and the ledger does not compare the cluster's machines"


def _seeds_of(name: str, missing: str) -> Any:
    def fill(facts: _Facts) -> Answer:
        seeds = facts.seeds(name)
        return ("yes", f"{len(seeds)}: {_listed(seeds)}") if seeds else ("no", missing)

    return fill


def _on_test_seeds(facts: _Facts) -> Answer:
    finals = facts.board.finals
    if not finals:
        return "no", "nothing was scored on test"
    asked = set(facts.seeds("test"))
    seen: dict[str, set[Any]] = {}
    for final in finals:
        seen.setdefault(str(final["role"]), set()).add(final.get("seed"))
    full = [name for name, seeds in seen.items() if asked and asked <= seeds]
    once = [name for name in seen if name not in full]
    told = f"trained with all test seeds: {', '.join(map(role, full)) or 'none'}; as they are: {', '.join(map(role, once)) or 'none'}"
    answer = "no" if not full else "partly" if once else "yes"
    made = "; a soup or an untrained model has no seed of its own" if full and once else ""
    return answer, told + made


def _incumbents(facts: _Facts) -> Answer:
    state, rows = facts.source.state, {row.name: row for row in facts.board.trials}
    told = []
    for candidate in state.candidates:
        if "run" in candidate:
            row = rows.get(str(candidate["run"]).partition("/")[0])
            settings = {} if row is None else row.parameters
            told.append(f"{role(candidate['role'])} {candidate['run']} ({_one_line(settings) or 'the file as it is'})")
        elif "soup" in candidate:
            soup = state.soups.get(str(candidate["soup"]))
            inside = [] if soup is None or soup.finished is None else soup.finished.get("ingredients") or []
            told.append(f"soup {candidate['soup']} of {', '.join(str(entry[0]) for entry in inside) or 'nothing'}")
    if told:
        return "yes", "; ".join(told)
    first = next((row for row in facts.board.trials if row.rank == 1), None)
    if first is None:
        return "no", "no trial has a result"
    return (
        "partly",
        f"nothing was frozen; best so far {first.name}, {score_text(first.score)} ({_one_line(first.parameters)})",
    )


def _code(facts: _Facts) -> Answer:
    command = facts.reproduction["commands"][0]["command"]
    path = facts.pipeline.get("import_path")
    said = f"the resolved sweep file has all of it, tuning included: {command}"
    if path:
        return "partly", f"{said}; the pipeline {path} is the user's own code, of which the ledger keeps the name alone"
    return "yes", said


def _environment(facts: _Facts) -> Answer:
    versions = facts.reproduction["versions"]
    if not versions:
        return "unknown", "no versions were recorded"
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    said = "; ".join((said, *(facts.source.state.driver.get("differences") or ())))
    return "partly", f"{said}; versions of other packages and of the operating system are not recorded"


def _hardware(facts: _Facts) -> Answer:
    driver = facts.source.state.driver
    known = {key: driver.get(key) for key in ("slots", "cpus", "gpus") if driver.get(key) is not None}
    if not known:
        return "unknown", "no driver said on what it ran"
    slots = known.get("slots", "an unknown number of")
    said = f"{'one trial' if slots == 1 else f'{slots} trials'} at a time, each with {known.get('cpus', '?')} CPUs and {known.get('gpus', 0):g} GPUs"
    return (
        "partly",
        f"{said}, driven from {driver.get('host') or 'a host that was not recorded'}; models of CPU and GPU are not recorded",
    )


GROUPS: dict[str, dict[str, Any]] = {
    "Settings": {
        "Are there training, tuning and test settings, and are they separate?": _separated,
        "Was the test setting left alone while tuning?": _untouched,
    },
    "Tuning": {
        "Which package and which method tuned?": _package,
        "The whole search space, with ranges and log scales": _space,
        "Is the space the same wherever methods share hyperparameters?": _same_space,
        "What is the cost measured in?": _cost,
        "What was the tuning budget, and was it equal for all configurations?": _budget,
        "Was the baseline given the same budget?": _baseline_budget,
        "If time counts: was the hardware comparable?": _hardware_comparable,
    },
    "Seeds": {
        "How many tuning seeds, and which?": _seeds_of("tune", "none is recorded"),
        "How many test seeds, and which?": _seeds_of("test", "none: seeds.test is empty, so training was not repeated"),
        "Are all results from the test seeds?": _on_test_seeds,
    },
    "Results and code": {
        "Which configurations were chosen in the end?": _incumbents,
        "Is the code there, tuning included?": _code,
        "The exact environment": _environment,
        "The hardware": _hardware,
    },
}
"""Group -> item -> what fills it in."""


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_one_line(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_one_line, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    shown = ", ".join(map(str, values[:SHOWN]))
    return shown + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
