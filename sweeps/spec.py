"""The sweep file, typed. Read once at the door (`sweeps.load`), it travels whole; nobody below it reads YAML.

Only pydantic and the standard library are imported, so that `stockpot check` needs neither torch nor ray.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from evaluators.config import AnyEvaluatorConfig
from pipelines.config import Config, PipelineConfig, wrong
from pipelines.energy import EnergyConfig
from pipelines.rag.models import JudgeConfig
from sweeps.soup_spec import Seed, SoupConfig
from sweeps.track_spec import TrackConfig

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class RandomConfig(Config):
    """Independent draws."""

    type: Literal["random"] = "random"
    several_metrics: ClassVar[bool] = True
    seed: Seed = 0
    """Seed of the draws."""


class GridConfig(Config):
    """Every combination, in the file's order or shuffled."""

    type: Literal["grid"] = "grid"
    several_metrics: ClassVar[bool] = True
    seed: Seed = 0
    """Seed of the shuffle."""
    shuffle: bool = False
    """Random order, so that a grid cut short by the budget is a fair sample."""


class TPEConfig(Config):
    """Tree-structured Parzen estimators (Optuna), multivariate, grouped by branch."""

    type: Literal["tpe"] = "tpe"
    several_metrics: ClassVar[bool] = True
    seed: Seed = 0
    """Seed of the sampler."""
    n_startup_trials: int = Field(default=8, ge=1)
    """Random draws before the model is used."""


class GPConfig(Config):
    """A Gaussian process (Optuna) over the parameters common to all arms; arms and their own parameters by TPE."""

    type: Literal["gp"] = "gp"
    several_metrics: ClassVar[bool] = True
    seed: Seed = 0
    """Seed of the sampler."""
    n_startup_trials: int = Field(default=8, ge=1)
    """Random draws before the model is used."""


class CMAESConfig(Config):
    """CMA-ES with margin over the numeric ranges common to all arms; choices and arms by TPE. One metric only."""

    type: Literal["cmaes"] = "cmaes"
    several_metrics: ClassVar[bool] = False
    seed: Seed = 0
    """Seed of the sampler."""
    population_size: int | None = Field(default=None, ge=3)
    """Trials a generation; default 4 + 3 ln(ranges), the paper's."""
    sigma: float = Field(default=0.25, gt=0, le=1)
    """First standard deviation, as a share of each range."""


class NSGA2Config(Config):
    """NSGA-II (Optuna) for one metric or several; parameters that only an arm has by TPE."""

    type: Literal["nsga2"] = "nsga2"
    several_metrics: ClassVar[bool] = True
    seed: Seed = 0
    """Seed of the sampler."""
    population_size: int = Field(default=8, ge=2)
    """Trials a generation; the first is drawn at random."""


MethodConfig = Annotated[
    RandomConfig | GridConfig | TPEConfig | GPConfig | CMAESConfig | NSGA2Config, Field(discriminator="type")
]


class Budget(Config):
    """When to stop asking. At least one is given."""

    trials: int | None = Field(default=None, ge=1)
    """Trials in all."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of wall time of all drivers together; running leases end at their next report, and the final step still runs."""


class NoneConfig(Config):
    """Every trial runs to the end."""

    type: Literal["none"] = "none"


class ASHAConfig(Config):
    """Asynchronous successive halving, by promotion."""

    type: Literal["asha"] = "asha"
    min: int = Field(ge=1)
    """First rung, in the pipeline's resource."""
    max: int | None = Field(default=None, ge=1)
    """The pipeline's total; anything else is an error."""
    eta: int = Field(default=3, ge=2)
    """One in eta goes on."""
    finalists: int | None = Field(default=None, ge=1)
    """Trials guaranteed to reach the total; default `soup.top`, at most half of the trials."""

    def milestones(self, total: int) -> tuple[int, ...]:
        """The rungs min, min x eta, min x eta^2, ... below the total, and the total."""
        rungs, rung = [], self.min
        while rung < total:
            rungs.append(rung)
            rung *= self.eta
        return (*rungs, total)


class RaceConfig(Config):
    """Racing over questions: a configuration leaves when it is shown, on the same questions, not to be the best."""

    type: Literal["race"] = "race"
    block: int = Field(default=20, ge=1)
    """Questions between two looks at the field."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance of ever putting out a configuration that is best, over all looks and configurations."""
    finalists: int | None = Field(default=None, ge=1)
    """Trials that answer all questions whatever happens; default `soup.top`, else 1."""
    most: int | None = Field(default=None, ge=1)
    """Trials at most that go into the last block, the best by their means: for what is dear and done at the end alone
    (answers, judges). Those cut so were not shown to be worse. All that are still in by default."""
    stop_when_tied: bool = False
    """Whether only `finalists`, the best by their means, go on once nobody is likely to leave any more: not even if all
    differences were one standard error larger than they were so far. Those cut so were not shown to be worse."""

    @model_validator(mode="after")
    def most_holds_the_finalists(self) -> RaceConfig:
        """`most` is not below `finalists`."""
        if self.most is not None and self.finalists is not None and self.most < self.finalists:
            raise wrong("most", f"{self.most} is less than finalists, {self.finalists}; raise it")
        return self

    def milestones(self, total: int) -> tuple[int, ...]:
        """Multiples of the block below the total, and the total."""
        return (*range(self.block, total, self.block), total)


EarlyTerminateConfig = Annotated[NoneConfig | ASHAConfig | RaceConfig, Field(discriminator="type")]


class Seeds(Config):
    """Seeds of tuning and, disjoint from them, of the final step."""

    tune: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """A configuration is scored by its mean over these. The first leads: under early termination the others begin once a
    configuration is let go on from its rung, so that a hopeless one costs one run; without it each is run with all."""
    test: tuple[Seed, ...] = ()
    """The winner and the baseline are retrained with these; empty: the interval then covers data, and training only where
    there are several tuning seeds."""

    @model_validator(mode="after")
    def no_seed_serves_twice(self) -> Seeds:
        """Seeds are different, and those of the final step were not tuned on."""
        for name, seeds in (("tune", self.tune), ("test", self.test)):
            if len(set(seeds)) < len(seeds):
                raise wrong(name, f"{list(seeds)} names a seed twice; each one counts once")
        if shared := sorted(set(self.tune) & set(self.test)):
            raise wrong("test", f"seeds {shared} stand under tune as well; the final step needs seeds of its own")
        return self


class Resources(Config):
    """What one trial gets."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU threads, of each worker; `auto` shares the machine's evenly among all workers that run at once."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs, a fraction shares one; with several, a worker on each trains a part of every step (fine-tunes only). `auto` is one
    a worker where the cluster has one."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that train one trial together, over several nodes where one has too little; default: one a GPU. A step has
    `micro_batch_size` x `gradient_accumulation_steps` rows of each."""
    energy: EnergyConfig = EnergyConfig()
    """How the energy of a fine-tune is measured, in joules and grams of CO2."""

    @model_validator(mode="after")
    def gpus_are_a_fraction_or_whole(self) -> Resources:
        """Ray gives a share of one GPU or whole GPUs."""
        if isinstance(self.gpus, float) and self.gpus > 1 and not self.gpus.is_integer():
            raise wrong("gpus", f"{self.gpus:g} is neither a share of one GPU nor a whole number of them")
        return self

    @model_validator(mode="after")
    def several_workers_have_a_gpu_each_or_none(self) -> Resources:
        """NCCL joins processes that have a device each."""
        if self.workers is not None and self.workers > 1 and isinstance(self.gpus, float):
            if self.gpus not in (0.0, float(self.workers)):
                raise wrong(
                    "gpus",
                    f"{self.gpus:g} for {self.workers} workers, which need a GPU each; write gpus: {self.workers}, or 0",
                )
        elif self.workers == 1 and isinstance(self.gpus, float) and self.gpus > 1:
            raise wrong("workers", f"1 for {self.gpus:g} GPUs, each of which needs a worker; delete the line")
        return self

    @property
    def together(self) -> int:
        """Processes that train one trial."""
        if self.workers is not None:
            return self.workers
        return max(1, int(self.gpus)) if isinstance(self.gpus, float) else 1

    @property
    def gpus_each(self) -> float | Literal["auto"]:
        """GPUs of one of them."""
        return self.gpus / self.together if isinstance(self.gpus, float) else self.gpus


class HostResources(Config):
    """What the process of a resident model gets."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU threads; `auto` is a quarter of the largest node's."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs, a fraction shares one; `auto` is one while the cluster has one left."""


class Hosts(Config):
    """Processes of resident models, for pipelines that ask them; roles without a section share one process."""

    embedder: HostResources | None = None
    """Embedding models."""
    reranker: HostResources | None = None
    """Cross-encoders and other rerankers."""
    generator: HostResources | None = None
    """What writes answers."""
    judge: HostResources | None = None
    """What grades answers."""


class OnFailure(Config):
    """What happens when a trial fails, by the kind of failure."""

    oom: Literal["halve_micro_batch", "stop"] = "halve_micro_batch"
    """Out of memory: go again with half the micro batch and double accumulation, or fail."""
    nan: Literal["stop"] = "stop"
    """Diverged: the trial ends at once."""
    node: Literal["retry", "stop"] = "retry"
    """A worker or node was lost: go again from the newest whole checkpoint."""
    max_restarts: int = Field(default=3, ge=0)
    """Restarts of one run after lost workers and nodes and stalls together; as often again after running out of memory."""
    abort_after_same_error: int = Field(default=3, ge=1)
    """The sweep stops when its first this-many ended trials all failed with the same error."""


class Keep(Config):
    """Which checkpoints stay, across the sweep."""

    best: int | None = Field(default=None, ge=1)
    """Runs whose newest checkpoint is kept; default `soup.top`, at least 1."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Gigabytes of checkpoints at most."""


class MetricConfig(Config):
    """What the sweep optimises."""

    name: str
    """`<split>/<evaluator>[.<field>]`; a bare name means `tune/`."""
    goal: Literal["minimize", "maximize"] | None = None
    """Only for custom and telemetry metrics; elsewhere the evaluator owns the direction."""


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


Metrics = Annotated[
    Annotated[MetricConfig, Tag("one")] | Annotated[tuple[MetricConfig, ...], Tag("several")],
    Discriminator(_one_or_several),
]
"""One metric, or a list of them."""
METRICS_AT_MOST = 5
"""Among more of them hardly a trial is worse than another, and the hypervolume takes long."""


class SweepSpec(Config):
    """One sweep file."""

    name: str = Field(pattern=NAME_PATTERN)
    """The sweep's name, also its folder under `storage`."""
    storage: str = "./stockpot-runs"
    """Folder of all sweeps, relative to the sweep file where the file names it, else to where the command runs; or
    `s3://bucket/prefix`, `gs://...`, `az://...`: then a sweep is worked on in a folder of this machine (`$STOCKPOT_WORK`, else
    `~/.stockpot/work`) and rides there in the background. Keys and endpoints come from the environment."""
    pipeline: PipelineConfig
    """What one trial is."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The search space: keys of `pipeline` and what they may be."""
    method: MethodConfig = RandomConfig()
    """How configurations are chosen."""
    metric: Metrics
    """What is optimised; a list gives a Pareto front, and its first metric is the primary one."""
    budget: Budget = Budget()
    """When to stop asking; a finite space needs none."""
    early_terminate: EarlyTerminateConfig = NoneConfig()
    """How trials are compared on the way."""
    seeds: Seeds = Seeds()
    """Seeds that each configuration is trained with, and those of the final step."""
    resources: Resources = Resources()
    """What one trial gets."""
    hosts: Hosts = Hosts()
    """Resident models that all trials ask (RAG): what their processes get."""
    on_failure: OnFailure = OnFailure()
    """What happens when a trial fails."""
    keep: Keep = Keep()
    """Which checkpoints stay."""
    evaluate: tuple[AnyEvaluatorConfig, ...] = ()
    """What else is scored at a run's end and in the final step."""
    judge: JudgeConfig | None = None
    """The language model that judged metrics ask; needed by them alone."""
    soup: SoupConfig | None = None
    """The soup; none without this section."""
    baseline: Literal["nadamw_algoperf", "lab", "tulu"] | dict[str, Any] | None = None
    """What the winner is compared with: changes to `pipeline`, trained in the final step; or, run by a fine-tune as trial 0,
    the calibrated values `nadamw_algoperf` or a recipe, `lab` or `tulu`; default: the untuned model."""
    track: tuple[TrackConfig, ...] = ()
    """Trackers that numbers are sent to beside the sweep's own ledger: `tensorboard`, `mlflow`, `wandb`, one or a list. They get names,
    parameters, scores, telemetry and outcomes; no data, no weights, no logs, no secrets."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at once at most; default: as many as fit."""
    priority: int = 0
    """On a cluster that several sweeps share, the larger number goes first: while its trials wait for a place, the others start no
    new one. Among equals the sweep that holds less goes first. `resume --priority` changes it."""
    report_every: int | None = Field(default=None, ge=1)
    """Resource between reports of telemetry."""
    checkpoint_seconds: float | None = Field(default=600.0, gt=0)
    """Seconds of training between the checkpoints that a fine-tune keeps for itself between two reports, one at a time, so that a
    lost worker or a stopped driver costs about so much; `null` for none. They never take more than a tenth of the time."""
    stall_after: float = Field(default=1800.0, gt=0)
    """Seconds without a report, an optimizer step or another sign of life after which a trial counts as stalled. A pipeline of
    one's own gives one with `pipelines.pulse.beat`."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of trials. Secrets are named here as `NAME: ${NAME}`: each worker reads them from the environment of
    its node's Ray, which is the command's where the sweep runs on this machine; they are never stored."""

    @model_validator(mode="after")
    def there_are_one_to_five_metrics(self) -> SweepSpec:
        """A list names at least one metric, and at most five."""
        if not 1 <= len(self.metrics) <= METRICS_AT_MOST:
            raise wrong("metric", f"{len(self.metrics)} metrics; give 1 to {METRICS_AT_MOST}")
        return self

    @property
    def named_baseline(self) -> str | None:
        """The word of a baseline that runs as trial 0; None where there is none."""
        return self.baseline if isinstance(self.baseline, str) else None

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """What is optimised, the primary metric first."""
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)
