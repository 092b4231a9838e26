"""The command line. Parsing needs only the standard library; each command imports what it needs when it runs.

Exit status: 0 when it worked (a sweep: at least one trial finished and the final step ran), 1 when it did not, 2 for the
user's mistake, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from sweeps.arguments import MISTAKE, parser
from sweeps.problems import SpecError

COMMANDS: dict[str, str] = {
    "init": "sweeps.commands.first:init",
    "convert": "sweeps.commands.convert:convert",
    "schema": "sweeps.commands.first:schema",
    "explain": "sweeps.commands.first:explain",
    "check": "sweeps.commands.check:check",
    "submit": "sweeps.commands.run:submit",
    "resume": "sweeps.commands.run:resume",
    "stop": "sweeps.commands.run:stop",
    "list": "sweeps.commands.look:list_sweeps",
    "status": "sweeps.commands.look:status",
    "logs": "sweeps.commands.look:logs",
    "track": "sweeps.commands.track:track",
    "show": "sweeps.commands.tables:show",
    "compare": "sweeps.commands.tables:compare",
    "report": "sweeps.commands.report:report",
    "soup": "sweeps.commands.soups:soup",
    "prune": "sweeps.commands.models:prune",
    "evaluate": "sweeps.commands.models:evaluate",
    "diagnose": "sweeps.commands.diagnose:diagnose",
    "evaluate-judge": "sweeps.commands.judging:evaluate_judge",
    "memo": "sweeps.commands.memo:memo",
    "cluster": "sweeps.commands.cluster:cluster",
}
"""Command -> `module:function`; the function takes the parsed arguments and returns the exit status."""

ASKED = {"status", "logs", "show", "compare", "stop"}
"""Commands about a sweep that its cluster is asked, where the sweep's files can't be seen from here."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FAILED = 1
INTERRUPTED = 130
MISTAKES = {"BudgetError", "ClusterError", "LedgerError", "SpecError", "StorageError", "UsageError", "UserError"}
"""Errors that a user can mend, by name: importing their classes would cost every command numpy."""


def _unknown_command(argv: Sequence[str]) -> str | None:
    word = next((a for a in argv if not a.startswith("-")), None)
    if word is None or word in COMMANDS:
        return None
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    if near:
        return f"'{word}' is no command; did you mean '{near[0]}'?"
    if word.endswith((".yaml", ".yml")):
        return f"'{word}' is no command; did you mean 'stockpot submit {word}'?"
    return f"'{word}' is no command; there are: {', '.join(COMMANDS)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    unknown = _unknown_command(words)
    if unknown:
        print(f"stockpot: {unknown}", file=sys.stderr)
        return MISTAKE
    top = parser()
    try:
        arguments = top.parse_args(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    if arguments.version:
        from importlib.metadata import version

        print(version("stockpot"))
        return 0
    if arguments.command is None:
        top.print_help()
        return MISTAKE
    return _guarded(arguments, words)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command here, or on the cluster that a sweep was submitted to."""
    if arguments.command == "logs" and arguments.job:
        from sweeps.commands.jobs import job_log

        return job_log(arguments)
    if arguments.command in ASKED:
        from sweeps.notes import NOTES

        if NOTES.expanduser().is_dir():
            from sweeps.commands.remote import ask, elsewhere

            note = elsewhere(arguments)
            if note is not None:
                return ask(note, arguments, words)
    module, _, name = COMMANDS[arguments.command].partition(":")
    status: int = getattr(importlib.import_module(module), name)(arguments)
    return status


def _guarded(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command; turn what a user can mend into one message."""
    try:
        status = _run(arguments, words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has what it wanted; keep the interpreter's own flush at exit quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(getattr(arguments, "status", 0))
    except OSError as error:
        if arguments.debug or error.errno not in (*FULL_DISK, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.EROFS:
            print(
                f"stockpot: the disk has become read-only{where}: mend it and go on; what was reported is whole",
                file=sys.stderr,
            )
            return FAILED
        print(
            f"stockpot: the disk is full{where}: free some space and go on; what was finished is whole", file=sys.stderr
        )
        return FAILED
    except KeyboardInterrupt:
        print("stockpot: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (RuntimeError, SpecError) as error:
        if arguments.debug or not MISTAKES & {cls.__name__ for cls in type(error).__mro__}:
            raise
        print(f"stockpot: {error}", file=sys.stderr)
        return MISTAKE


if __name__ == "__main__":
    sys.exit(main())
