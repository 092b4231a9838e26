"""Writes retrieval.json: ranx's values on random lists, for tests/unit/test_rag_retrieval.py.

ranx is no dependency of the project (it brings numba and matplotlib). In an environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install ranx==0.3.21
    oracle/bin/python tests/oracles/retrieval.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ranx import Qrels, Run, evaluate

METRICS = ("recall", "precision", "mrr", "ndcg", "map")
DOCUMENTS = [f"d{number}" for number in range(30)]


def values(gold: dict[str, int], ranked: list[str]) -> dict[str, float]:
    """ranx's metrics of one list without doubles."""
    run = Run({"q": {document: float(len(ranked) - place) for place, document in enumerate(ranked)}})
    found = evaluate(Qrels({"q": gold}), run, list(METRICS))
    return {name: float(value) for name, value in found.items()}


def documents(random_: random.Random) -> dict[str, Any]:
    """Gold documents, and a list in which documents stand several times; ranx gets each at its first place."""
    gold = random_.sample(DOCUMENTS, random_.randint(1, 6))
    retrieved = random_.choices(DOCUMENTS[: random_.randint(5, 30)], k=random_.randint(1, 25))
    once = list(dict.fromkeys(retrieved))
    return {"gold": gold, "retrieved": retrieved, "values": values(dict.fromkeys(gold, 1), once)}


def spans(random_: random.Random) -> dict[str, Any]:
    """A gold span a document, its length its relevance; a passage is a whole span, or nothing of one."""
    gold = {document: random_.randint(1, 90) for document in random_.sample(DOCUMENTS, random_.randint(1, 6))}
    ranked = random_.sample(DOCUMENTS, random_.randint(1, 25))
    return {"gold": gold, "ranked": ranked, "values": values(gold, ranked)}


def main() -> None:
    """Write the file beside this one."""
    random_ = random.Random(0)
    cases = {
        "documents": [documents(random_) for _ in range(60)],
        "spans": [spans(random_) for _ in range(60)],
    }
    place = Path(__file__).with_suffix(".json")
    place.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
