"""A sweep file for preference tuning on the user's own data: pairs, or answers with a label."""

from __future__ import annotations

from pathlib import Path

from pipelines.finetune.preference_config import PAIRED, UNPAIRED
from pipelines.stage import UserError
from sweeps.local import absolute_path
from sweeps.starter.base import Request, Starter, laid_out
from sweeps.starter.naming import sweep_name
from sweeps.starter.quote import quoted
from sweeps.starter.sft import (
    BASE_MODEL,
    MICRO_BATCH,
    ROWS_A_STEP,
    TOP,
    TRIALS,
    Plan,
    datasets_lines,
    lengths,
    planned,
    steps,
)


def start(request: Request) -> Starter:
    """Look at the data and write the file's text.

    Raises:
        UserError: if the data can't be used as they are; the message says what was seen and what to do.
    """
    plan, found = _seen(request)
    name = sweep_name([absolute_path(request.data, Path.cwd())], request.output.parent, "dpo")
    return Starter(_text(name, request.base_model or BASE_MODEL, plan), tuple(found))


def _seen(request: Request) -> tuple[Plan, list[str]]:
    """Pairs, else answers with a label; where neither fits, what is wrong with pairs."""
    folder = request.output.parent
    if request.type is not None or "label" in request.fields:
        kind = request.type or UNPAIRED
        if kind not in (PAIRED, UNPAIRED):
            raise UserError(f"--type: rows of {kind} hold no preference; dpo takes {PAIRED} and {UNPAIRED}")
        return planned(request.data, kind, request.fields, folder)
    try:
        return planned(request.data, PAIRED, request.fields, folder)
    except UserError as error:
        try:
            return planned(request.data, UNPAIRED, request.fields, folder)
        except UserError:
            mend = "say which is which: --field-prompt=COLUMN --field-chosen=COLUMN --field-rejected=COLUMN"
            raise UserError(f"{error}\n  {mend}") from None


def _text(name: str, base_model: str, plan: Plan) -> str:
    paired = plan.shape.type == PAIRED
    total, passes = steps(plan.train)
    length, long = lengths(plan)
    over = "" if passes is None else f": {passes:.2g} passes over the {plan.train:,} rows of train"
    chars = f"99 of 100 rows have at most {long:,} characters" if long else "longer rows are cut, and counted"
    unit = "pairs" if paired else "answers"
    lines: list[tuple[str, str]] = [
        (f"name: {name}", "also the folder of its results, under ./stockpot-runs"),
        ("pipeline:", "what one trial is; any key below can be swept"),
        ("  type: dpo", "preference tuning"),
        (f"  base_model: {quoted(base_model)}", "better a model fine-tuned on such answers: sweep://NAME/soup"),
        *datasets_lines(plan),
        *([] if paired else [("  loss: kto", "the loss for single answers that are good or bad")]),
        ("  adapter: lora", "none: train all weights"),
        (f"  micro_batch_size: {MICRO_BATCH}", f"{unit} in one forward pass; halved where memory runs out"),
        (f"  gradient_accumulation_steps: {ROWS_A_STEP // MICRO_BATCH}", f"{ROWS_A_STEP} {unit} an optimizer step"),
        (f"  max_steps: {total}", f"optimizer steps of a whole run{over}"),
        ("  warmup_ratio: 0.1", "share of the steps in which the learning rate rises"),
        (f"  sequence_len: {length}", f"tokens of prompt and answer at most; {chars}"),
        ("  # precision: bf16", "faster on GPUs, and on CPUs with bf16 instructions"),
        ("parameters:", "what is searched"),
        ("  learning_rate: {distribution: log_uniform_values, min: 1.0e-6, max: 2.0e-4}", ""),
        *_losses(paired),
        ("method: {type: tpe, seed: 0}", "how configurations are chosen: random, grid, tpe, gp, ..."),
        ("metric: reward_accuracy", "share of tune's pairs ranked right; loss and reward_margin stand beside it"),
        (f"budget: {{trials: {TRIALS}}}", "or hours: H, or both"),
        (
            f"early_terminate: {{type: asha, min: {total // 9}, eta: 3}}",
            f"one in 3 goes on at {total // 9}, {total // 3}",
        ),
        (f"soup: {{method: greedy, top: {TOP}}}", "merges the best runs where that helps on select"),
    ]
    return laid_out("A sweep of preference tunings", lines)


def _losses(paired: bool) -> list[tuple[str, str]]:
    if not paired:
        return [("  loss.beta: [0.05, 0.1, 0.3]", "how far the model is held to where it starts")]
    return [
        ("  loss:", "how answers are compared; beta: how far the model is held to where it starts"),
        ("    choose:", "each loss with its own parameters"),
        ("      sigmoid: {beta: [0.05, 0.1, 0.3]}", "DPO"),
        ("      ln_dpo: {beta: [2, 5, 10]}", "per token, so that long answers win nothing"),
        ("      simpo: {beta: [2, 2.5], gamma_beta_ratio: [0.25, 0.5]}", "per token, without a reference"),
    ]
