"""Model card and checklist with hostile names: read by a Markdown parser, they show the names and are otherwise as ever."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from test_hostile_names import NAMES

from sweeps.glyphs import clean
from sweeps.markdown import code, escaped, row
from sweeps.provenance import model_card
from sweeps.report.checklist import to_markdown

HOSTILE = [
    *NAMES,
    "plain_name-1.0",
    "a | b | c",
    "a\\|b\\",
    "x\n\n# Heading\n\n- item",
    "x |\n|---|---|\n| more | cells",
    "</code><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden",
    "![](https://tracker.example/x.png)",
    "[click](javascript:alert(1)) <https://x.example>",
    "`code` ``two`` ```three",
    "`",
    "**bold** _em_ __strong__ ~~gone~~ $x$",
    "&lt;b&gt; &amp; &#96;",
    '"); import os; os.system("touch pwned") #',
    "\n```\n<script>alert(1)</script>\n```python\n",
    "---\nlicense: mit\n---",
    "# x #",
    "",
]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(text: str) -> str:
    """What a reader should see of a text: one line without controls."""
    return " ".join(clean(text).split())


def parsed(text: str) -> tuple[Any, list[Token]]:
    """Front matter and the tokens of what follows it."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(found[1]), PARSER.parse(text[found.end() :])) if found else (None, PARSER.parse(text))


def kinds(tokens: Sequence[Token]) -> list[str]:
    """Of all tokens, those within lines too."""
    return [one.type for token in tokens for one in (token, *(token.children or ()))]


def words(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def cells(tokens: Sequence[Token]) -> list[list[str]]:
    """Rows of cells of the tables, as they are shown."""
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            rows[-1].append(words(token))
    return rows


def record(name: str, kind: str = "adapter") -> dict[str, Any]:
    ingredients = [
        {"run": name, "select": {"value": 1.5}, "decision": name, "weight": 1.0},
        {"run": "0001/seed-0", "select": None, "decision": "left out", "weight": 0.0},
    ]
    return {
        "sweep": name,
        "soup": "greedy-1",
        "method": name,
        "metric": name,
        "base_model": name,
        "weights": {"kind": kind, "rank": 16},
        "chose": {"value": 1.25, "se": 0.5, "n": 40},
        "ingredients": ingredients,
        "delta_cosines": {"runs": [name, "0001/seed-0"], "norms": [1.0, 2.0], "cosines": [[1.0, 0.5], [0.5, None]]},
    }


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_is_the_same_card_whatever_the_names(name: str, kind: str) -> None:
    head, tokens = parsed(model_card(record(name, kind)))
    usual_head, usual = parsed(model_card(record("n", kind)))
    assert head == usual_head
    assert head["tags"] == ["model-soup", "stockpot"]
    plain = [one for one in kinds(usual) if one != "text"]
    assert [one for one in kinds(tokens) if one != "text"] == plain
    assert not {"html_inline", "html_block", "link_open", "image"} & set(plain)
    first, title, prose = tokens[0], tokens[1], words(tokens[4])
    assert (first.tag, words(title)) == ("h1", f"{shown(name)}: greedy-1".strip())
    assert f"A {shown(name)} soup, " in prose
    assert f"{shown(name)} chose it: 1.25 ± 0.5 (n=40)" in prose
    spans = [child.content for child in tokens[4].children or () if child.type == "code_inline"]
    assert spans == [shown(name) or " ", f"stockpot show {shown(name)}".strip(), "soup.json"]
    assert cells(tokens) == [
        ["run", f"{shown(name)} alone".strip(), "decision", "weight"],
        [shown(name), "1.5", shown(name), "1"],
        ["0001/seed-0", "?", "left out", "0"],
        ["run", "‖Δ‖", shown(name.partition("-")[0]), "0001/seed"],
        [shown(name), "1", "1.00", "0.50"],
        ["0001/seed-0", "2", "0.50", "?"],
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_s_python_loads_the_model_by_its_name_and_does_nothing_else(name: str) -> None:
    _, tokens = parsed(model_card(record(name)))
    [fence] = [token for token in tokens if token.type == "fence"]
    first, second = ast.parse(fence.content).body
    assert ast.unparse(second) == "model = PeftModel.from_pretrained(model, FOLDER)"
    assert isinstance(first, ast.Assign)
    assert isinstance(first.value, ast.Call)
    [given] = first.value.args
    assert ast.unparse(first.value.func) == "AutoModelForCausalLM.from_pretrained"
    assert ast.literal_eval(given) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checklist_is_the_same_list_whatever_the_answers(name: str) -> None:
    def listed(said: str) -> list[Token]:
        items = [{"group": "G", "item": "Was it?", "answer": "yes", "said": said}] * 2
        return parsed(to_markdown("n", items))[1]

    tokens = listed(name)
    assert [one for one in kinds(tokens) if one != "text"] == [one for one in kinds(listed("n")) if one != "text"]
    assert [words(token) for token in tokens if token.type == "inline"][3:] == [
        f"[x] Was it? yes: {shown(name)}".strip()
    ] * 2


@given(st.text())
def test_any_text_is_one_cell_and_shows_itself(text: str) -> None:
    tokens = PARSER.parse(f"{row(['h', 'i'])}\n|---|---|\n{row([text, 'x'])}\n")
    assert cells(tokens) == [["h", "i"], [shown(text), "x"]]
    assert set(kinds(tokens[1:])) <= {
        "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open", "tr_close", "th_open", "th_close", "td_open",
        "td_close", "inline", "text", "table_close",
    }  # fmt: skip


@given(st.text("ab _*`\\[]<>&|~$#!:/.-\n", max_size=20))
def test_any_marks_are_themselves(text: str) -> None:
    [_, inline, _] = PARSER.parse(f"# x {escaped(text)}")
    assert (words(inline), set(kinds(inline.children or []))) == (f"x {shown(text)}".strip(), {"text"})
    [_, inline, _] = PARSER.parse(f"x{code(text)}x")
    assert [child.type for child in inline.children or ()] == ["text", "code_inline", "text"]
    assert (inline.children or [])[1].content == (shown(text) or " ")
