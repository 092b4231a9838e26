"""Writing the page and the checklist: aside, then moved to its place, so that a reader never sees half of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sweeps.paths import SweepPaths
from sweeps.records import write_aside


def write_report(paths: SweepPaths, out: Path | None = None, checklist: Path | None = None) -> Path:
    """Write the report of a sweep in any state, and its reproducibility checklist as Markdown.

    Args:
        paths: the sweep's.
        out: where to; default `<sweep>/report.html`.
        checklist: where the checklist goes; default `<sweep>/checklist.md`, and nowhere where `out` is given alone.

    Returns:
        Where the page is.

    Raises:
        LedgerError: when the ledger can't be read.
        OSError: when the file can't be written.
    """
    from sweeps.report.checklist import to_markdown
    from sweeps.report.page import build_page
    from sweeps.report.record import report_record

    place = (out or paths.report).absolute()
    record = report_record(paths)
    _place(place, build_page(record))
    if checklist is not None or out is None:
        _place((checklist or paths.checklist).absolute(), to_markdown(record["name"], record["checklist"]))
    return place


def _place(place: Path, text: str) -> None:
    """Write a text aside, and move it to its place; an OSError names that."""
    try:
        write_aside(place, text)
    except OSError as error:
        error.filename = str(place)
        raise


def try_report(paths: SweepPaths, say: Callable[[str], None]) -> Path | None:
    """Write the report at a sweep's end; whatever goes wrong is said and never ends the sweep."""
    try:
        return write_report(paths)
    except Exception as error:
        lines = str(error).strip().splitlines()
        say(f"the report could not be written: {type(error).__name__}: {lines[0] if lines else ''}")
        return None
