"""What the command line takes: every command with its arguments. Only the standard library and names are imported."""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Callable
from typing import Any, NoReturn

from sweeps.cluster_arguments import add_cluster
from sweeps.convert import CONVERTERS
from sweeps.options import (
    add_address,
    add_detach,
    add_file,
    add_insecure,
    add_json,
    add_machines,
    add_name,
    add_storage,
    port,
    positive,
    seconds,
    share,
)
from sweeps.starter import STARTERS
from sweeps.starter.base import QUESTION_PARTS
from sweeps.stopping import GRACE_SECONDS

MISTAKE = 2
"""Exit status of what the user can mend."""


class Parser(argparse.ArgumentParser):
    """argparse with a did-you-mean for options and messages on one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """What argparse finds; an option that is none ends it here, where those of the command are known."""
        found, left = super().parse_known_args(args, namespace)
        strange = next((word.partition("=")[0] for word in left if word.startswith("--")), None)
        if strange is not None:
            near = difflib.get_close_matches(strange, self._option_string_actions, n=1)
            self.error(f"{strange} is no option of '{self.prog}'" + (f"; did you mean {near[0]}?" if near else ""))
        return found, left

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is; exit with status 2."""
        self.exit(MISTAKE, f"stockpot: {message}\n{self.prog} --help shows what there is\n")


@functools.cache
def parser() -> Parser:
    """The whole command line, built once a process."""
    top = Parser(prog="stockpot", description="Hyperparameter sweeps that end in a judged soup.")
    top.add_argument("--version", action="store_true", help="print the version")
    top.add_argument("--debug", action="store_true", help="show the traceback behind a message")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    _add_first(add)
    _add_running(add)
    _add_reading(add)
    _add_models(add)
    _add_memo(add)
    add_cluster(add("cluster", "clusters to run sweeps on: raise nodes, find faults, write manifests"), Parser)
    return top


Add = Callable[[str, str], argparse.ArgumentParser]


def _add_first(add: Add) -> None:
    init = add("init", "write a commented sweep file for your own data")
    init.add_argument("kind", nargs="?", metavar="|".join(STARTERS), help="what to sweep")
    init.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="file, folder or pattern: JSONL, JSON, CSV, Parquet, Arrow; of rag the documents: Markdown, text, HTML, PDF, JSONL",
    )
    init.add_argument("questions", nargs="?", metavar="QUESTIONS", help="of rag: a JSONL file, a question a line")
    init.add_argument(
        "-o", "--output", default="sweep.yaml", metavar="FILE", help="where to write (default sweep.yaml)"
    )
    init.add_argument(
        "--base-model",
        metavar="M",
        help="what is fine-tuned (default: SmolLM2-135M-Instruct, to begin with), or writes answers",
    )
    init.add_argument("--force", action="store_true", help="overwrite the file")
    _rows(init)
    for part in QUESTION_PARTS:
        init.add_argument(
            f"--field-{part}", metavar="KEY", help=f"of rag: key of the question's {part} (default: seen)"
        )
    _add_convert(add)
    schema = add("schema", "the JSON Schema of the sweep file, for editors")
    schema.add_argument("-o", "--output", metavar="FILE", help="write it there; default: print it")
    schema.epilog = (
        "An editor with a YAML language server (VS Code, Neovim, Zed, ...) completes and checks a sweep file that begins "
        "with the line  # yaml-language-server: $schema=./sweep.schema.json  after  stockpot schema -o sweep.schema.json"
    )
    explain = add("explain", "what a key of the sweep file means")
    explain.add_argument("key", nargs="?", metavar="KEY", help="learning_rate, early_terminate.eta, soup, tpe, ...")
    add_json(explain)


def _add_convert(add: Add) -> None:
    convert = add("convert", "turn an Axolotl config or a W&B sweep into a sweep file, and say what it can't carry")
    convert.add_argument("file", metavar="FILE", help="axolotl.yml, or W&B's sweep.yaml")
    convert.add_argument("--sweep", metavar="FILE", help="Axolotl's --sweep file, what is searched")
    convert.add_argument(
        "-o", "--output", default="sweep.yaml", metavar="FILE", help="where to write (default sweep.yaml)"
    )
    convert.add_argument("--from", dest="tool", choices=CONVERTERS, help="whose file it is (default: seen)")
    convert.add_argument("--base-model", metavar="M", help="what is fine-tuned; W&B's files do not say it")
    convert.add_argument("--data", metavar="DATA", help="what is trained on; W&B's files do not say it")
    _rows(convert)
    convert.add_argument(
        "--import-path", metavar="MODULE:CLASS", help="W&B: sweep a pipeline of your own instead of a fine-tune"
    )
    convert.add_argument("--total", type=positive, metavar="N", help="resource of a whole run of that pipeline")
    convert.add_argument("--force", action="store_true", help="overwrite the file")
    add_json(convert)


def _rows(command: argparse.ArgumentParser) -> None:
    kinds = "prompt_completion, chat, text, preference, unpaired_preference"
    command.add_argument("--type", metavar="TYPE", help=f"of the rows: {kinds} (default: seen)")
    for field in ("prompt", "completion", "messages", "text", "chosen", "rejected", "label"):
        command.add_argument(f"--field-{field}", metavar="COLUMN", help=f"column of the {field} (default: seen)")


def _add_running(add: Add) -> None:
    check = add("check", "validate a sweep file and say what it would run")
    add_file(check)
    check.add_argument("--data", action="store_true", help="also read the data: rows a split, duplicates, lengths")
    add_address(check, "the cluster whose nodes must hold it; default: this machine")
    add_json(check)
    submit = add("submit", "run a sweep, here or on a Ray cluster")
    add_file(submit)
    submit.add_argument(
        "--or-resume",
        action="store_true",
        help="go on with the sweep where it is there already, for scripts that restart",
    )
    add_address(
        submit,
        "a Ray cluster: host:port of its head, or http://HEAD:8265 for Ray Jobs; or slurm://[PARTITION] or "
        "kuberay://[NAMESPACE], which raise one; default: Ray started here",
    )
    add_detach(submit)
    add_machines(submit)
    add_json(submit, "print one JSON object at the end; progress goes to stderr")
    resume = add("resume", "go on with an interrupted or stopped sweep, or with a finished one given a larger budget")
    add_name(resume)
    resume.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="trials=N[,hours=H]",
        help="trials in all, or hours in all, from now on; a finished sweep goes on with what this adds",
    )
    resume.add_argument(
        "--priority", type=int, metavar="N", help="on a cluster that sweeps share, from now on: the larger goes first"
    )
    add_address(resume)
    add_detach(resume)
    add_json(resume, "print one JSON object at the end; progress goes to stderr")
    stop = add("stop", "ask a running sweep to stop; it can be resumed")
    add_name(stop)
    add_insecure(stop)
    stop.add_argument(
        "--grace",
        type=seconds,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"end trials that have not reported after so long, 0 at once (default {GRACE_SECONDS:g})",
    )
    stop.add_argument("--no-wait", action="store_true", help="do not wait until it has stopped")
    stop.add_argument("--timeout", type=seconds, default=120.0, metavar="SECONDS", help="wait this long (default 120)")


def _add_reading(add: Add) -> None:
    everything = add("list", "all sweeps: state, trials, best")
    add_storage(everything)
    add_json(everything)
    status = add("status", "how far a sweep is")
    add_name(status)
    add_insecure(status)
    status.add_argument("--watch", action="store_true", help="go on showing until the sweep has ended")
    status.add_argument("--interval", type=seconds, default=2.0, metavar="SECONDS", help="of --watch (default 2)")
    add_json(status)
    logs = add("logs", "the ends of logs, and why trials failed")
    add_name(logs)
    add_insecure(logs)
    logs.add_argument("trial", nargs="?", metavar="TRIAL", help="a trial's name, its beginning or its number")
    logs.add_argument("--job", action="store_true", help="what the job that drives it printed, where one does")
    logs.add_argument("-n", "--lines", type=positive, default=40, help="lines of a log shown (default 40)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on showing what is added, while a driver runs")
    logs.add_argument(
        "--json", action="store_true", help="a trial's lines as they lie on the disk, one JSON object each"
    )
    track = add("track", "send a sweep's numbers to its trackers, as far as they lack them")
    add_name(track)
    kinds = ("tensorboard", "mlflow", "wandb")
    track.add_argument("--to", choices=kinds, help="to this one alone, whether the file names it or not")
    show = add("show", "the leaderboard")
    add_name(show)
    add_insecure(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")
    show.add_argument("--top", type=positive, metavar="N", help="first N rows only")
    compare = add("compare", "compare the best runs, of one sweep or of several, pair by pair")
    compare.add_argument("names", nargs="+", metavar="NAME", help="a sweep's name or folder")
    add_storage(compare)
    add_insecure(compare)
    compare.add_argument("--top", type=positive, metavar="N", help="best runs of each sweep (default 8)")
    compare.add_argument(
        "--by",
        metavar="KEY",
        help="how robust each value of a key is, over all configurations: loss.type, optimizer, adapter, retrieve, ...",
    )
    compare.add_argument(
        "--metric",
        action="append",
        metavar="M[:GOAL]",
        help="compare by it instead of the sweep's own, such as token_f1, cost/latency or train/x:maximize; several give a front",
    )
    compare.add_argument("--trial", action="append", metavar="T", help="compare this trial; given twice or more")
    add_json(compare)
    _add_report(add)


def _add_report(add: Add) -> None:
    report = add("report", "one self-contained page about a sweep, or a live one")
    add_name(report)
    report.add_argument("-o", "--output", metavar="FILE.html", help="where to write it (default: the sweep's folder)")
    report.add_argument(
        "--checklist",
        metavar="FILE.md",
        help="where to write the reproducibility checklist (default: checklist.md in the sweep's folder)",
    )
    report.add_argument("--watch", action="store_true", help="serve it here and follow a running sweep, until Ctrl-C")
    report.add_argument("--port", type=port, metavar="P", help="of --watch (default: a free one)")
    report.add_argument("--host", metavar="H", help="of --watch (default 127.0.0.1: nobody else can see it)")
    report.add_argument("--open", action="store_true", help="open it in a browser")
    add_json(report, "print the page's record as JSON")


def _add_models(add: Add) -> None:
    soup = add("soup", "make and judge a soup from a finished or stopped sweep")
    add_name(soup)
    soup.add_argument(
        "--method", metavar="M", help="greedy, uniform, pruned, ties, ...; default: the file's, else greedy"
    )
    soup.add_argument("--top", type=positive, metavar="K", help="runs considered; default: the file's, else 5")
    soup.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="a key of soup: barrier=false, ..."
    )
    add_address(soup)
    add_json(soup)
    evaluate = add("evaluate", "score any model or soup on data")
    evaluate.add_argument("model", metavar="MODEL", help="hub id, folder, GGUF file, package://..., sweep://NAME/best")
    evaluate.add_argument(
        "--on", required=True, metavar="DATA", help="a data file, as of a split, or sweep://NAME/tune|select|test"
    )
    evaluate.add_argument("--with", required=True, dest="evaluators", metavar="EVALUATOR[,...]", help="loss, ...")
    evaluate.add_argument("--base", metavar="MODEL", help="base model of an adapter folder; default: the one it names")
    _row_keys(evaluate)
    evaluate.add_argument("--limit", type=positive, metavar="N", help="first N rows only")
    evaluate.add_argument("--max-new-tokens", type=positive, metavar="N", help="of generated answers")
    evaluate.add_argument("--answer-regex", metavar="REGEX", help="exact_match compares what this finds")
    evaluate.add_argument("--sequence-len", type=positive, metavar="N", help="tokens a row at most")
    evaluate.add_argument("--batch-size", type=positive, metavar="N", help="rows in one forward pass")
    add_storage(evaluate)
    add_json(evaluate)
    _add_diagnosing(add)
    _add_pruning(add)
    _add_judging(add)


def _add_diagnosing(add: Add) -> None:
    diagnose = add("diagnose", "how two checkpoints lie to each other: cosine, CKA, the path between them")
    for name in ("A", "B"):
        diagnose.add_argument(name.lower(), metavar=name, help="sweep://NAME/best|soup|TRIAL, a folder, a model")
    diagnose.add_argument(
        "--data",
        dest="on",
        metavar="DATA",
        help="a data file, or sweep://NAME/train|tune|select; default: select of the sweep of A or B, else tune",
    )
    _row_keys(diagnose)
    diagnose.add_argument("--base", metavar="MODEL", help="what both were trained on; default: what they name")
    diagnose.add_argument("--limit", type=positive, metavar="N", help="first N rows only")
    diagnose.add_argument("--sequence-len", type=positive, metavar="N", help="tokens a row at most")
    diagnose.add_argument("--batch-size", type=positive, metavar="N", help="rows in one forward pass")
    diagnose.add_argument(
        "--curve", type=positive, metavar="STEPS", help="also train a curve between them, on half of the rows"
    )
    diagnose.add_argument(
        "--curve-rate", type=seconds, default=1e-4, metavar="R", help="learning rate of --curve (default 1e-4)"
    )
    add_storage(diagnose)
    add_json(diagnose)


def _add_pruning(add: Add) -> None:
    prune = add("prune", "set a share of a model's weights to zero, to be retrained with pipeline.type retrain_pruned")
    prune.add_argument("model", metavar="MODEL", help="hub id, folder, GGUF file, package://..., sweep://NAME/best")
    prune.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write the pruned model")
    prune.add_argument("--sparsity", required=True, type=share, metavar="S", help="share of zeros, above 0 and below 1")
    prune.add_argument(
        "--method", choices=("magnitude", "wanda"), default="magnitude", help="what is pruned first (default magnitude)"
    )
    prune.add_argument(
        "--scope", choices=("global", "layer"), default="global", help="magnitude: compared over all, or in each matrix"
    )
    prune.add_argument("--on", metavar="FILE", help="wanda: a data file whose rows weigh the inputs")
    _row_keys(prune)
    prune.add_argument("--limit", type=positive, default=128, metavar="N", help="first N rows (default 128)")
    prune.add_argument("--sequence-len", type=positive, default=1024, metavar="N", help="tokens a row (default 1024)")
    prune.add_argument("--force", action="store_true", help="overwrite the folder")
    add_storage(prune)
    add_json(prune)


def _row_keys(command: argparse.ArgumentParser) -> None:
    command.add_argument("--type", metavar="TYPE", help="of the rows: prompt_completion, chat, text (default: seen)")
    for field in ("prompt", "completion", "messages", "text"):
        command.add_argument(f"--field-{field}", metavar="KEY", help=f"key of the {field} (default '{field}')")


def _add_judging(add: Add) -> None:
    judging = add("evaluate-judge", "measure a metric against what people say, and keep the result as its card")
    judging.add_argument("--metric", required=True, metavar="METRIC", help="token_f1, faithfulness, ...; answerability")
    judging.add_argument("--on", required=True, metavar="FILE.jsonl", help="answers that people have judged")
    judging.add_argument(
        "--judge", metavar="SWEEP.yaml", help="the sweep file whose judge, embedding and settings count"
    )
    judging.add_argument("--limit", type=positive, metavar="N", help="first N rows only")
    add_storage(judging)
    add_json(judging)


def _add_memo(add: Add) -> None:
    memo = add("memo", "what is stored of model calls, and what it saved; or make it smaller")
    memo.add_argument("action", choices=("stats", "prune"), help="show what there is, or delete")
    memo.add_argument(
        "--kind", action="append", default=[], metavar="KIND", help="only this kind of call; may be repeated"
    )
    memo.add_argument("--older-than", type=seconds, metavar="DAYS", help="prune: what was stored longer ago")
    memo.add_argument("--max-gb", type=seconds, metavar="N", help="prune: the oldest, until the rest is no larger")
    add_storage(memo)
    add_json(memo)
