"""What the door says about `early_terminate`: how long runs are, and where they can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config import AnyPipeline, Datasets, FineTuneConfig, RagConfig, total_resource
from pipelines.data.files import is_hub_id
from sweeps.draft import Draft
from sweeps.local import absolute
from sweeps.metrics import Metric
from sweeps.spec import ASHAConfig, RaceConfig


def check_rungs(draft: Draft, metrics: Sequence[Metric]) -> tuple[int, tuple[int, ...]]:
    """Runs can be compared where `early_terminate` compares them.

    Args:
        draft: the file.
        metrics: what it optimises.

    Returns:
        Resource of the longest run, and the milestones, ascending; of use only where no mistake was noted.
    """
    rule = draft.spec.early_terminate
    lengths = next((key for key in ("max_steps", "num_epochs", "total") if draft.swept(key)), None)
    if isinstance(rule, ASHAConfig) and lengths is not None:
        draft.wrong(
            draft.source(lengths), f"runs differ in length, so asha can't compare them; give {lengths} one value"
        )
        return 1, (1,)
    found = _totals(draft)
    if not found:
        return 1, (1,)
    total = max(found)
    if isinstance(rule, RaceConfig) and _race(draft, rule, metrics, total):
        return total, rule.milestones(total)
    if isinstance(rule, ASHAConfig) and _halving(draft, rule, found):
        return total, rule.milestones(total)
    return total, (total,)


def _halving(draft: Draft, rule: ASHAConfig, found: set[int]) -> bool:
    """ASHA compares runs of one length at rungs before their end; whether that length has rungs."""
    total = max(found)
    if len(found) > 1:
        steps = f"{min(found)} to {total} steps"
        draft.wrong(
            ("pipeline", "num_epochs"), f"makes {steps}, by batch size, and asha can't compare them; give max_steps"
        )
        return False
    if rule.max is not None and rule.max != total:
        message = f"{rule.max} is not the length of a run, which is {total}; delete max"
        draft.wrong(("early_terminate", "max"), message)
    if rule.min >= total:
        message = f"the first rung {rule.min} must come before the end of a run, {total}"
        draft.wrong(("early_terminate", "min"), message)
        return False
    return True


def _race(draft: Draft, rule: RaceConfig, metrics: Sequence[Metric], total: int) -> bool:
    """A race is over questions, on one metric in 0..1, by configurations that all begin together; whether it has blocks."""
    spec, place = draft.spec, ("early_terminate",)
    if not isinstance(spec.pipeline, RagConfig):
        draft.wrong((*place, "type"), f"race is over questions, and {spec.pipeline.type} has none; use asha")
        return False
    if spec.method.type not in ("grid", "random"):
        mend = "write method: grid, or random with budget.trials"
        draft.wrong(
            (*place, "type"),
            f"a race needs all configurations at its start, and {spec.method.type} chooses later; {mend}",
        )
    if len(metrics) > 1 or any(not metric.scored for metric in metrics):
        draft.wrong((*place, "type"), "a race compares one score between 0 and 1; name one metric that is a score")
    if len(spec.seeds.tune) > 1:
        draft.wrong(("seeds", "tune"), "a race takes one seed; questions are what it repeats")
    if spec.pipeline.questions_section.group_by is not None:
        draft.wrong(
            (*place, "type"), "a race counts every question once, which groups forbid; delete questions.group_by"
        )
    if rule.block >= total:
        draft.wrong((*place, "block"), f"{rule.block} questions are not fewer than the {total} of tune; lower it")
        return False
    return True


class _DataError(ValueError):
    """The rows can't be counted; the message names file and line."""


def _totals(draft: Draft) -> set[int]:
    """Resource of a whole run, over the configurations that were built; empty, with a problem, when data can't be read."""
    counted: dict[str, int] = {}
    found: set[int] = set()
    for _, config in draft.configs:

        def rows(datasets: Datasets, config: AnyPipeline = config) -> int:
            key = datasets.model_dump_json()
            if key not in counted:
                counted[key] = _count_rows(datasets, config, draft)
            return counted[key]

        try:
            workers = draft.spec.resources.together if draft.sound("resources") else 1
            found.add(total_resource(config, rows, lambda config: _count_questions(config, draft), workers))
        except _DataError as error:
            draft.wrong(("pipeline", "questions" if isinstance(config, RagConfig) else "datasets"), str(error))
            return set()
    return found


def _count_rows(datasets: Datasets, config: AnyPipeline, draft: Draft) -> int:
    from pipelines.splits import count_train
    from pipelines.stage import UserError

    placed = Datasets.model_validate(absolute({"datasets": datasets.model_dump(mode="json")}, draft.folder)["datasets"])
    unread = list(dict.fromkeys(data.path for data in placed.files.values() if is_hub_id(data.path)))
    if unread and not draft.fetch:
        raise _DataError(
            f"num_epochs needs the rows of {' and '.join(unread)}, which are fetched by `submit` and `check --data` alone; add "
            "--data, or give max_steps"
        )
    try:
        return count_train(placed, config.seed_data if isinstance(config, FineTuneConfig) else 0)
    except UserError as error:
        raise _DataError(str(error)) from None


def _count_questions(config: RagConfig, draft: Draft) -> int:
    from pipelines.rag.questions import count_tune
    from pipelines.stage import UserError

    key = config.questions_section.model_dump_json()
    if key not in draft.questions:
        placed = RagConfig.model_validate(absolute(config.model_dump(mode="json"), draft.folder))
        try:
            draft.questions[key] = count_tune(placed)
        except UserError as error:
            raise _DataError(str(error)) from None
    return draft.questions[key]
