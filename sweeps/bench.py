"""Who answers a recipe: blends scored by workers, every answer and decision an event, and all of it known on a resume.

`Tasting` implements `pipelines.soups.base.Bench`. A blend that is asked for is scored at once together with those that will
be asked next if nothing changes (`ahead`), as many as the backend has slots. Only what was asked for is recorded, in the
order it was asked: the ledger of a soup made by many workers is that of one worker, event by event. What was scored ahead
in vain is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.base import Direction, Score
from evaluators.statistics import contrast
from pipelines.soups.base import NOTHING, Ahead, Blend, SoupEvent, SoupNote
from sweeps.engine import Backend, CallFailed
from sweeps.events import Event, Items
from sweeps.gathering import Grams
from sweeps.ledger import Ledger, number
from sweeps.loop import Pending
from sweeps.paths import cache_dir
from sweeps.provenance import shown
from sweeps.scoring import EVALUATE, Say, call, model_source
from sweeps.soup_plan import NoSoup, Plan
from sweeps.state import SoupState

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

RESOURCE = 0
"""Item scores of soups are stored at this resource: a soup has no steps."""
TASTE = "sweeps.tasting:taste"
LEARN = "pipelines.soups.learned:learn"
CHECK = "pipelines.soups.admission:problems"
COSINES = "pipelines.soups.cosines:measure"
MAY_FAIL = ("user", "oom", "nan")
"""Failures that are the blend's own, so that a search goes on without it."""


class Tasting:
    """One soup's questions and answers.

    Args:
        loaded: the sweep.
        ledger: open for writing.
        backend: makes and scores blends.
        plan: ingredients and what scores them.
        soup: what the ledger has of this soup.
        work: a folder for trial soups.
        config: a configuration of the sweep, for the base model and the rows.
        say: takes lines for people.
    """

    def __init__(
        self,
        loaded: LoadedSweep,
        ledger: Ledger,
        backend: Backend,
        plan: Plan,
        soup: SoupState,
        work: Path,
        config: Mapping[str, Any],
        say: Say,
    ) -> None:
        self.loaded, self.ledger, self.backend, self.plan, self.say = loaded, ledger, backend, plan, say
        self.soup, self.work, self.config = soup.id, work, config
        self.folders = {ingredient.run: ingredient.folder for ingredient in plan.ingredients}
        self.known = {Blend.from_record(body): Score.from_record(body["score"]) for body in soup.scored}
        self.steps = {Blend.from_record(body): int(body["step"]) for body in soup.scored}
        self.answers = {_asked(body["question"], body["about"]): body["answer"] for body in soup.answers}
        self.told = soup.told
        self.unpaired = any(
            body["kind"] == "soup_noted" and body["what"] == "path" and "se" not in body for body in self.told
        )
        """Begun by a version whose barriers knew the ends' errors only; it goes on as it was begun."""
        self.heard = 0
        self.grams = Grams(loaded, backend, plan, say)
        self._begun: dict[Blend, Pending] = {}
        self.direction: Direction = "minimize"

    def score(
        self,
        blend: Blend,
        ahead: Ahead = NOTHING,
        against: Blend | None = None,
        may_fail: bool = False,
    ) -> Score:
        """See `Bench`; from the ledger where it is there."""
        if blend in self.known:
            return self.known[blend]
        rivals: dict[Blend, Blend | None] = {}
        for one, rival in ((blend, against), *ahead.items()):
            rivals.setdefault(one, rival)
        window = [one for one in rivals if one not in self.known][: self.backend.slots]
        for one in [one for one in self._begun if one not in window]:
            self._begun.pop(one).forget()
        self.grams.ready(window)
        if len(window) > 1:
            for one in window:
                if one not in self._begun:
                    self._begun[one] = self.backend.start(*self._question(one, rivals[one]))
        function, payload = self._question(blend, against)
        begun = self._begun.pop(blend, None)
        try:
            answer = call(self.loaded, self.backend, function, payload, self.say, begun)
        except CallFailed as error:
            if not (may_fail and error.failure.kind in MAY_FAIL):
                raise
            return self._failed(blend, error.failure.message)
        return self._record(blend, answer, against)

    def contrast(self, parts: Sequence[tuple[float, Blend]]) -> tuple[float, float]:
        """See `Bench`: on the stored items, paired and clustered."""
        split, _, name = self.plan.metric.partition("/")
        total = math.fsum(factor * self.known[blend].value for factor, blend in parts)
        stored = [
            self.ledger.items(f"soup/{self.soup}/{self.steps[blend]}", RESOURCE, name, split) for _, blend in parts
        ]
        kept = [one for one in stored if one is not None]
        if self.unpaired or len(kept) < len(stored) or any(one.item_set != kept[0].item_set for one in kept):
            return total, math.nan
        factors = [factor for factor, _ in parts]
        if name == "perplexity":
            # Its items are nats: around exp(mean) a change of the mean counts exp(mean) times.
            factors = [factor * self.known[blend].value for factor, blend in parts]
        found = contrast([(f, one.values) for f, one in zip(factors, kept, strict=True)], kept[0].item_set)
        return (total if name == "perplexity" else found.difference), found.se

    def problems(self, runs: Sequence[str]) -> Mapping[str, str]:
        """See `Bench`."""
        found: dict[str, str] = self._ask("problems", {"runs": list(runs)}, CHECK, self._weights(runs))
        return found

    def cosines(self, runs: Sequence[str]) -> Mapping[str, Any]:
        """How alike the changes of those runs are whose weights are sound (`pipelines.soups.cosines.measure`)."""
        unsound = self.problems(runs)
        sound = [run for run in runs if run not in unsound]
        found: dict[str, Any] = self._ask("cosines", {"runs": sound}, COSINES, self._weights(sound))
        return found

    def _weights(self, runs: Sequence[str]) -> dict[str, Any]:
        folders = {run: self.folders[run] for run in runs}
        return {"folders": folders, "base": self.config.get("base_model"), "cache": str(cache_dir())}

    def learn(self, runs: Sequence[str], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Bench`."""
        about = {"runs": list(runs), "settings": dict(settings)}
        payload = {
            "config": dict(self.config),
            "folders": [self.folders[run] for run in runs],
            "settings": dict(settings),
            "split": "select",
            "cache": str(cache_dir()),
        }
        answer: dict[str, Any] = self._ask("learn", about, LEARN, payload)
        return answer

    def tell(self, event: SoupEvent | SoupNote) -> None:
        """Write a decision or a note, unless an earlier driver did."""
        if isinstance(event, SoupNote):
            kind, body = "soup_noted", {"soup": self.soup, "what": event.what, **event.body}
            if self.unpaired and event.what == "path":
                body.pop("se")
        else:
            kind, body = "soup_decided", {"soup": self.soup, **_decision(event)}
        if self.heard < len(self.told):
            before = self.told[self.heard]
            assert before == _plain({"kind": kind, **body}), (
                f"a resumed soup must decide as before, but got {body} for {before}"
            )
        else:
            self.ledger.append([Event(kind, body)])
        self.heard += 1

    def close(self) -> None:
        """Let go of what was scored ahead."""
        for pending in self._begun.values():
            pending.forget()
        self._begun.clear()

    def merge_payload(self, blend: Blend, out: Path) -> dict[str, Any]:
        """What `pipelines.soups:merge` takes."""
        payload: dict[str, Any] = {
            "ingredients": [[self.folders[run], weight] for run, weight in blend.mixture],
            "out": str(out),
            "cache": str(cache_dir()),
        }
        if not blend.averaged:
            payload |= {"method": json.loads(blend.method), "base": self.config.get("base_model"), "seed": blend.seed}
            payload["scale"] = blend.scale
        return {**payload, **{k: v for k, v in (("rank", blend.rank), ("energy", blend.energy)) if v is not None}}

    def made(self, blend: Blend, folder: Path) -> Score:
        """The score of a blend whose weights lie in a folder already."""
        if blend not in self.known:
            source = asdict(model_source(self.config, folder))
            payload = {"config": dict(self.config), "model": source, "split": "select", "evaluators": self._evaluators}
            scores = call(self.loaded, self.backend, EVALUATE, payload, self.say)
            self._record(blend, {"scores": scores}, None)
        return self.known[blend]

    @property
    def _evaluators(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.plan.evaluators]

    def _question(self, blend: Blend, against: Blend | None) -> tuple[str, dict[str, Any]]:
        """The call that scores a blend."""
        common = {"config": dict(self.config), "split": "select", "evaluators": self._evaluators}
        if blend.single is not None:
            return EVALUATE, {**common, "model": asdict(model_source(self.config, Path(self.folders[blend.single])))}
        key = hashlib.sha256(repr(blend).encode()).hexdigest()[:16]
        merge = self.merge_payload(blend, self.work / key)
        return TASTE, {**common, "merge": merge, "averaged": blend.averaged, "early": self._early(against)}

    def _early(self, against: Blend | None) -> dict[str, Any] | None:
        """What an early stop is decided by, where the file asks for one."""
        rule = getattr(self.plan.config, "early_stop", None)
        if rule is None or against is None:
            return None
        split, _, name = self.plan.metric.partition("/")
        stored = self.ledger.items(f"soup/{self.soup}/{self.steps[against]}", RESOURCE, name, split)
        if stored is None or name == "perplexity":
            return None
        items = [None if math.isnan(value) else float(value) for value in stored.values]
        settings = {"metric": self.plan.metric, "block": rule.block, "alpha": rule.alpha, "seed": self.plan.config.seed}
        return {**settings, "items": items}

    def _record(self, blend: Blend, answer: Any, against: Blend | None) -> Score:
        """Write a score with its items, and remember it."""
        tasted = answer if isinstance(answer, dict) else {"scores": answer}
        scores: Sequence[Score] = tasted["scores"]
        score = next((score for score in scores if score.key == self.plan.metric), None)
        if score is None:
            raise NoSoup(f"the pipeline does not report {self.plan.metric}")
        more: dict[str, Any] = {}
        if "seen" in tasted and against is not None:
            worse = tasted["worse_by"] if score.direction == "minimize" else -tasted["worse_by"]
            score = replace(score, value=self.known[against].value + worse)
            more["seen"] = tasted["seen"]
        self._write(blend, score, scores if not more else (), more)
        cut = f", cut short after {more['seen']} rows" if more else ""
        self.say(f"soup {self.soup}: {told(blend)}: {scored(score)}{cut}")
        return self.known[blend]

    def _failed(self, blend: Blend, message: str) -> Score:
        name = self.plan.metric.partition("/")[2]
        score = Score(name, "select", math.nan, math.nan, 0, 0, self._direction())
        self._write(blend, score, (), {"failed": message})
        self.say(f"soup {self.soup}: {told(blend)}: could not be scored: {message}")
        return self.known[blend]

    def _write(self, blend: Blend, score: Score, stored: Sequence[Score], more: Mapping[str, Any]) -> None:
        step = len(self.known)
        body = {"soup": self.soup, "step": step, **blend.record(), "score": score.record(), **more}
        owner = f"soup/{self.soup}/{step}"
        self.ledger.append([Event("soup_scored", body)], [Items(owner, RESOURCE, each) for each in stored])
        self.ledger.ship()
        self.known[blend] = Score.from_record(score.record())
        self.steps[blend] = step

    def _direction(self) -> Direction:
        return next((score.direction for score in self.known.values()), self.direction)

    def _ask(self, question: str, about: Mapping[str, Any], function: str, payload: Mapping[str, Any]) -> Any:
        """Something else about the weights that a worker works out, asked once."""
        key = _asked(question, about)
        if key not in self.answers:
            answer = _plain(call(self.loaded, self.backend, function, payload, self.say))
            body = {"soup": self.soup, "question": question, "about": about, "answer": answer}
            self.ledger.append([Event("soup_answered", body)])
            self.ledger.ship()
            self.answers[key] = answer
        return self.answers[key]


def told(blend: Blend) -> str:
    """A blend in a line for people."""
    equal = len({round(weight, 9) for _, weight in blend.mixture}) == 1
    runs = " + ".join(run if equal else f"{weight:.2g} {run}" for run, weight in blend.mixture)
    kind = json.loads(blend.method)["type"]
    words = [] if kind == "average" else [kind]
    words += [f"scale {blend.scale:g}"] if blend.scale != 1.0 else []
    return f"{runs} ({', '.join(words)})" if words else runs


def scored(score: Score) -> str:
    """A score in a line for people."""
    return f"{score.key} {shown(number(score.value))} ± {shown(number(score.se))} (n={score.n})"


def _decision(event: SoupEvent) -> dict[str, Any]:
    return {
        "run": event.run,
        "decision": event.decision,
        "score": number(event.score),
        "best": number(event.best),
        "reason": event.reason,
    }


def _asked(question: str, about: Mapping[str, Any]) -> str:
    return json.dumps([question, about], sort_keys=True)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=_number))


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")
