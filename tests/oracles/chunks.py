"""Writes chunks.json: what LangChain cuts, for tests/unit/test_rag_chunk.py.

LangChain is no dependency of the project. In an environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install langchain-text-splitters==1.1.3 numpy
    oracle/bin/pip install --no-deps langchain-experimental==0.4.2
    oracle/bin/python tests/oracles/chunks.py

langchain-experimental imports one function of langchain-community, which is not needed for thresholds and not installed.
"""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

for name in ("langchain_community", "langchain_community.utils", "langchain_community.utils.math"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["langchain_community.utils.math"].cosine_similarity = None  # type: ignore[attr-defined]

from langchain_experimental.text_splitter import SemanticChunker  # noqa: E402
from langchain_text_splitters import RecursiveCharacterTextSplitter  # noqa: E402

WORDS = [
    "the",
    "deposit",
    "is",
    "paid",
    "back",
    "within",
    "thirty",
    "days",
    "of",
    "the",
    "end",
    "of",
    "a",
    "lease",
    "and",
    "not",
    "later",
    "été",
    "💶",
]
ENDS = (" ", " ", " ", " ", ". ", ". ", ", ", "\n", "\n\n")


def text(random_: random.Random) -> str:
    """Prose with paragraphs; no `\\r\\n`, which LangChain does not know as a line's end."""
    return "".join(random_.choice(WORDS) + random_.choice(ENDS) for _ in range(random_.randint(1, 90)))


def recursive(random_: random.Random) -> dict[str, Any]:
    """One case."""
    size = random_.randint(16, 120)
    overlap = random_.choice([0, 0, size // 4, size // 2, size - 1])
    separators = random_.choice([["\n\n", "\n", ". ", " ", ""], ["\n\n", ""], [", ", " ", ""]])
    whole = text(random_)
    splitter = RecursiveCharacterTextSplitter(
        separators=separators, chunk_size=size, chunk_overlap=overlap, keep_separator="end", strip_whitespace=False
    )
    chunks = [chunk for chunk in splitter.split_text(whole) if chunk.strip()]
    settings = {"size": size, "overlap": overlap, "separators": separators}
    return {"settings": settings, "text": whole, "chunks": chunks}


def semantic(kind: Any, generator: np.random.Generator) -> dict[str, Any]:
    """One case."""
    amount = float(generator.uniform(50, 99) if kind in ("percentile", "gradient") else generator.uniform(0.2, 2))
    distances = [round(float(d), 4) for d in generator.beta(2, 5, int(generator.integers(2, 40)))]
    chunker = SemanticChunker(None, breakpoint_threshold_type=kind, breakpoint_threshold_amount=amount)
    threshold, compared = chunker._calculate_breakpoint_threshold(distances)
    above = [i for i, d in enumerate(compared) if d > threshold]
    return {"kind": kind, "amount": amount, "distances": distances, "breakpoints": above}


def main() -> None:
    """Write the file beside this one."""
    random_, generator = random.Random(0), np.random.default_rng(0)
    cases = {
        "recursive": [recursive(random_) for _ in range(40)],
        "semantic": [
            semantic(kind, generator)
            for kind in ("percentile", "standard_deviation", "interquartile", "gradient")
            for _ in range(12)
        ],
    }
    place = Path(__file__).with_suffix(".json")
    place.write_text(json.dumps(cases, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
