"""A record becomes one HTML text that needs nothing from anywhere: style, script, charts and data are inside it.

Nothing of a record is ever parsed as HTML: it travels as JSON in a data block, escaped so that no text can end the block,
and the script puts texts into the page as text. The content security policy allows the two scripts and the one style by
their hashes and refuses everything else, the network included.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

SCRIPTS = ("base", "charts", "curves", "parallel", "pictures", "soup", "time", "tables", "sections", "main")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def build_page(record: Mapping[str, Any], *, live: bool = False) -> str:
    """The page of a record.

    Args:
        record: as `sweeps.report.record.report_record` makes it.
        live: whether it follows the server that it came from.
    """
    vendor, script, style = (_asset(name) for name in ("vendor", "script", "style"))
    slots = {
        "csp": policy(live),
        "title": html.escape(f"{record['name']} · Stockpot"),
        "heading": html.escape(str(record["headline"]["title"])),
        "style": style,
        "vendor": vendor,
        "script": script,
        "record": embedded(record),
    }
    page = _SLOT.sub(lambda slot: slots[slot[1]], _asset("template"))
    return page.replace('<html lang="en">', '<html lang="en" data-live="true">', 1) if live else page


def embedded(record: Mapping[str, Any]) -> str:
    """JSON that can stand in a `<script>` data block: ASCII alone, and nothing that HTML takes for a tag or an entity."""
    text = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(live: bool) -> str:
    """The content security policy. Style attributes are the chart library's own; they can load nothing."""
    scripts = " ".join(f"'sha256-{_digest(_asset(name))}'" for name in ("vendor", "script"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'sha256-{_digest(_asset('style'))}'; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        "connect-src " + ("'self'" if live else "'none'")
    )


@cache
def _asset(name: str) -> str:
    assets = resources.files("sweeps.report") / "assets"
    if name == "script":
        parts = [(assets / "js" / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS]
        return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
    files = {"template": "template.html", "style": "style.css", "vendor": "vendor/echarts.min.js"}
    return (assets / files[name]).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
