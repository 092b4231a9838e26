"""`soup`: make and judge a soup from what a finished or stopped sweep has."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError, find_sweep, refuse_idle_insecure

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.soup_spec import SoupConfig


def soup(arguments: argparse.Namespace) -> int:
    """Make a soup, judge it on `test` (counted as an opening), and tell its story."""
    from sweeps.commands.tables import print_sweep, sweep_record
    from sweeps.driving import driving
    from sweeps.final import judge_soup
    from sweeps.ledger import Ledger
    from sweeps.load import load_resolved
    from sweeps.loop import CallFailed
    from sweeps.progress import ProgressView
    from sweeps.soup import make_soup

    refuse_idle_insecure(arguments)
    found = find_sweep(arguments.name, arguments.storage)
    loaded, paths = load_resolved(found.resolved_spec), found.working
    config = _config(arguments, loaded)
    made = None
    with ProgressView(sys.stderr if arguments.json else sys.stdout) as view, driving(paths, view.on_message) as drive:
        ledger = Ledger.open(paths.root)
        try:
            from sweeps.backend import RayBackend

            backend = RayBackend(loaded, paths, arguments.address, view.on_message, insecure=arguments.insecure)
            try:
                backend.refuse_unseen(paths.root.parent)
                made = make_soup(loaded, ledger, paths, backend, config, view.on_message)
                if made is not None:
                    judge_soup(loaded, ledger, paths, backend, made, view.on_message)
            except CallFailed as failed:
                made, told = (
                    None,
                    f"failed: {failed.failure.message} (see {paths.log('calls')}); mend it, then ask again",
                )
                view.on_message(told)
            finally:
                backend.close()
        finally:
            ledger.close()
    arguments.status = drive.status(0 if made is not None else 1)
    if arguments.json:
        record = {"status": arguments.status, "soup": made.id if made is not None else None, **sweep_record(paths)}
        print(json.dumps(record, indent=2, allow_nan=False))
    elif made is not None:
        print_sweep(paths)
    return int(arguments.status)


def _config(arguments: argparse.Namespace, loaded: LoadedSweep) -> SoupConfig:
    """The file's `soup` section with what the command line changes.

    Another method keeps what the section says of every method (`top`, `metric`, `barrier`, `rank`, ...).

    Raises:
        UsageError: naming every mistake.
    """
    from pydantic import ValidationError

    from sweeps.complaints import complaints
    from sweeps.problems import unknown
    from sweeps.soup_spec import DEFAULT, SOUP_CONFIGS, SOUP_METHODS, SoupBase, parse_soup
    from sweeps.yaml_source import read

    given = {} if loaded.spec.soup is None else loaded.spec.soup.model_dump(mode="json", exclude_unset=True)
    method = arguments.method or given.get("method", DEFAULT)
    if method not in SOUP_METHODS:
        raise UsageError(f"--method: {unknown(method, SOUP_METHODS)}")
    if arguments.top is not None and arguments.top < 2:
        raise UsageError(f"--top must be at least 2 to make a soup, but got {arguments.top}")
    if method != given.get("method", DEFAULT):
        given = {key: value for key, value in given.items() if key in SoupBase.model_fields}
    data: dict[str, Any] = {**given, "method": method}
    if arguments.top is not None:
        data["top"] = arguments.top
    for argument in arguments.sets:
        key, equals, text = argument.partition("=")
        document = read(text.encode())
        if not equals or not key.strip() or document.problems:
            raise UsageError(
                f"--set {argument}: write KEY=VALUE, a key of the soup section: merge.type=ties, tie=reject"
            )
        _put(data, key.strip().removeprefix("soup.").split("."), document.data)
    try:
        return parse_soup(data)
    except ValidationError as error:
        found = complaints(error, data, SOUP_CONFIGS, "soup")
        told = [f"{'.'.join(map(str, ('soup', *one.path)))}: {one.message}" for one in found]
        raise UsageError("; ".join(told)) from error


def _put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    data[path[-1]] = value
