"""`report`: one self-contained page about a sweep, written once or served while it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sweeps.commands.places import UsageError, find_sweep
from sweeps.paths import SweepPaths


def report(arguments: argparse.Namespace) -> int:
    """Write the page, print its record, or serve it until Ctrl-C."""
    paths = find_sweep(arguments.name, arguments.storage)
    _refuse_mixtures(arguments)
    if arguments.watch:
        return _watch(paths, arguments)
    if arguments.json:
        from sweeps.report.record import report_record

        print(json.dumps(report_record(paths), indent=2, allow_nan=False))
        return 0
    from sweeps.report.write import write_report

    out, listed = (
        None if given is None else Path(given).expanduser() for given in (arguments.output, arguments.checklist)
    )
    try:
        place = write_report(paths, out, listed)
    except OSError as error:
        named = error.filename or out or paths.report
        raise UsageError(f"the report can't be written to {named}: {error.strerror or error}") from error
    print(f"report: {place} ({place.stat().st_size / 1e6:.2f} MB)")
    if out is None or listed is not None:
        print(f"checklist: {(listed or paths.checklist).absolute()}")
    if arguments.open:
        _open(place.as_uri())
    return 0


def _refuse_mixtures(arguments: argparse.Namespace) -> None:
    written = arguments.output is not None or arguments.checklist is not None
    if arguments.watch and (arguments.json or written):
        raise UsageError("--watch serves the page; it goes with none of --json, -o and --checklist")
    if arguments.json and (written or arguments.open):
        raise UsageError("--json prints the page's record and writes no page; leave out -o, --checklist and --open")
    if not arguments.watch and (arguments.port is not None or arguments.host is not None):
        raise UsageError("--port and --host are for --watch")


def _watch(paths: SweepPaths, arguments: argparse.Namespace) -> int:
    from sweeps.report.serve import LOCAL, LOOPBACK, ReportServer

    host = arguments.host or LOOPBACK
    try:
        server = ReportServer(paths, host, arguments.port or 0)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host}, port {arguments.port or 'any'}: {error.strerror or error}"
        ) from error
    if host not in LOCAL:
        print(
            f"warning: this sweep can be read through {host} by everybody who has the address below, or listens: there is no encryption",
            file=sys.stderr,
        )
    try:
        print(f"report of {paths.name}: {server.url} (Ctrl-C ends it)", flush=True)
        if arguments.open:
            _open(server.url)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("ended")
    finally:
        server.server_close()
    return 0


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        print(f"no browser could be opened; the page is at {url}", file=sys.stderr)
