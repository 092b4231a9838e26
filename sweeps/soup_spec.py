"""The `soup:` section, typed: a recipe a class, told apart by `method`. Only pydantic and the standard library are imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import Discriminator, Field, Tag, TypeAdapter, create_model, model_validator

from pipelines.config import Config, PruneConfig, wrong
from pipelines.soups.config import AverageConfig, MergeMethodConfig

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class TowardBaseConfig(Config):
    """A last step from the soup toward the base model, searched on the path between them."""

    evaluations: int = Field(default=9, ge=2, le=50)
    """Points of the path that are scored at most."""
    closest: float = Field(default=0.05, gt=0, le=0.5)
    """The narrowest gap between points that is still halved."""


class EarlyStopConfig(Config):
    """When the scoring of a hopeless candidate is cut short."""

    block: int = Field(default=25, ge=2)
    """Rows between looks, in a seeded random order."""
    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Chance, over all looks, that a candidate is cut short which all rows together would have let in."""


class SoupBase(Config):
    """What every recipe has."""

    told_by: ClassVar[str] = "method"
    top: int = Field(default=5, ge=2)
    """Runs considered: the best at the highest rung."""
    metric: str | None = None
    """Which metric chooses on `select`; default the sweep's."""
    barrier: bool = True
    """Leave out runs behind a barrier on the straight path to the soup; costs 3 to 15 scores a run."""
    max_drop: float = Field(default=0.0, ge=0)
    """How much worse than the straight line between its ends the path may be, beside noise; in the metric's unit."""
    toward_base: bool | TowardBaseConfig = False
    """Search a last step from the soup toward the base model; taken only where it beats the soup beyond noise."""
    rank: int | None = Field(default=None, ge=1)
    """The finished adapter is compacted to this rank at most; default: it is exact."""
    energy: float | None = Field(default=None, gt=0, le=1)
    """The finished adapter is compacted to the rank that keeps this share of its squared norm."""
    seed: Seed = 0
    """Seed of whatever a recipe or a merge method draws."""

    @model_validator(mode="after")
    def an_adapter_is_compacted_one_way(self) -> SoupBase:
        """Rank and energy both say how large the adapter may be."""
        if self.rank is not None and self.energy is not None:
            raise wrong("energy", "rank is given as well, and each of them decides the rank; delete one")
        return self


class UniformSoupConfig(SoupBase):
    """The mean of all that pass the checks."""

    method: Literal["uniform"] = "uniform"
    """Name of the recipe."""
    merge: MergeMethodConfig = AverageConfig()
    """How the ingredients are merged."""
    tie: Literal["accept", "reject"] = "accept"
    """Greedy's and pruned's; it means nothing here."""


class WeightedSoupConfig(SoupBase):
    """The average with weights that you give; they are divided by their sum."""

    method: Literal["weighted"] = "weighted"
    """Name of the recipe."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | dict[str, Annotated[float, Field(ge=0)]]
    """A list for the best run on `select`, the next, ...; or trial id (or its number) -> weight. The others stay out."""
    merge: MergeMethodConfig = AverageConfig()
    """How the ingredients are merged."""

    @model_validator(mode="after")
    def somebody_has_a_weight(self) -> WeightedSoupConfig:
        """At least one weight is above zero."""
        given = self.weights.values() if isinstance(self.weights, dict) else self.weights
        if not any(given):
            raise wrong("weights", "none is above zero; give one for each run that goes in")
        return self


class GreedySoupConfig(SoupBase):
    """Adds one run at a time, best first, and keeps it while the score does not fall."""

    method: Literal["greedy"] = "greedy"
    """Name of the recipe."""
    tie: Literal["accept", "reject"] = "accept"
    """Whether an equal score counts as no loss (the paper: accept)."""
    merge: MergeMethodConfig = AverageConfig()
    """How the ingredients are merged."""
    early_stop: EarlyStopConfig | None = None
    """Cut the scoring of hopeless candidates short; default: every candidate is scored on all rows."""


class PrunedSoupConfig(SoupBase):
    """Begins with all and takes one run out at a time, worst first, while the score does not fall."""

    method: Literal["pruned"] = "pruned"
    """Name of the recipe."""
    tie: Literal["accept", "reject"] = "accept"
    """Whether an equal score counts as no loss (the paper: accept)."""
    merge: MergeMethodConfig = AverageConfig()
    """How the ingredients are merged."""
    early_stop: EarlyStopConfig | None = None
    """Cut the scoring of hopeless candidates short; default: every candidate is scored on all rows."""


class LearnedSoupConfig(SoupBase):
    """Softmax weights trained by gradient on `select`, loss alone; adapters, or full models of which two fit in memory in float32."""

    method: Literal["learned"] = "learned"
    """Name of the recipe."""
    per: Literal["model", "layer", "tensor"] = "model"
    """One weight a model, a layer, or a tensor."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the rows of `select`."""
    learning_rate: float = Field(default=0.05, gt=0)
    """AdamW's, without decay."""
    temperature: bool = True
    """Whether a factor on all logits is learned as well."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better loss after which training ends."""


class SearchSoupConfig(SoupBase):
    """Weights, and density and scale of the merge method, by CMA-ES on the score."""

    method: Literal["search"] = "search"
    """Name of the recipe."""
    evaluations: int = Field(default=40, ge=4)
    """Mixtures scored at most, the single runs not counted."""
    sigma: float = Field(default=0.17, gt=0, le=1)
    """First standard deviation, as a share of each range."""
    population: int | None = Field(default=None, ge=3)
    """Mixtures a generation; default 4 + 3 ln(numbers searched)."""
    merge: MergeMethodConfig = AverageConfig()
    """How the ingredients are merged."""


class RetrainConfig(Config):
    """What the retrainings of a phase differ in: every combination is one. An empty list: as the pruned run had it."""

    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds: the order of the rows, an adapter's beginning."""
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weight decays."""
    learning_rate: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Peak learning rates."""
    lr_scheduler: tuple[Literal["cosine", "linear", "constant", "constant_with_warmup"], ...] = ()
    """Schedules."""
    max_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Lengths of a retraining, in optimizer steps."""

    @property
    def parameters(self) -> dict[str, list[Any]]:
        """What is swept beside the seeds: key of `pipeline` -> values."""
        own = self.model_dump(mode="json", exclude={"seeds"})
        return {key: values for key, values in own.items() if values}

    @property
    def count(self) -> int:
        """Retrainings of a phase."""
        return len(self.seeds) * math.prod(len(values) for values in self.parameters.values())


class SparseSoupConfig(SoupBase):
    """Prunes the best run, retrains it several times with its zeros held, averages, and prunes the average in turn."""

    method: Literal["sparse"] = "sparse"
    """Name of the recipe."""
    top: int = Field(default=1, ge=1)
    """Runs that are sure to reach the end; it begins with the best."""
    sparsity: float = Field(gt=0, lt=1)
    """Share of zeros at the end."""
    phases: int = Field(default=3, ge=1, le=20)
    """How often is pruned and retrained; each phase prunes the same share of what is left."""
    prune: PruneConfig = PruneConfig()
    """Which weights are pruned."""
    retrain: RetrainConfig = RetrainConfig()
    """The retrainings of each phase."""
    take: Literal["uniform", "greedy"] = "uniform"
    """What goes into a phase's average: all retrainings, or those that don't make the score on `select` worse."""

    @model_validator(mode="after")
    def there_is_something_to_average(self) -> SparseSoupConfig:
        """Two retrainings at least."""
        if self.retrain.count < 2:
            raise wrong("retrain.seeds", "is one retraining alone; a soup needs two, so give two seeds or more")
        return self

    @model_validator(mode="after")
    def nothing_fills_the_zeros(self) -> SparseSoupConfig:
        """A step toward a dense base would, and there is no adapter to compact."""
        if self.toward_base:
            raise wrong("toward_base", "the base model is dense, so a step toward it fills the zeros; delete it")
        for key in ("rank", "energy"):
            if getattr(self, key) is not None:
                raise wrong(key, "compacts adapters, and a sparse soup is a whole model; delete it")
        return self

    def share(self, phase: int) -> float:
        """Share of zeros after a phase, counted from 1: 1 - (1 - sparsity)^(phase / phases)."""
        return self.sparsity if phase == self.phases else 1.0 - (1.0 - self.sparsity) ** (phase / self.phases)

    @property
    def mixing(self) -> UniformSoupConfig | GreedySoupConfig:
        """The recipe of a phase's average."""
        common = {key: getattr(self, key) for key in ("metric", "barrier", "max_drop", "seed")}
        return (GreedySoupConfig if self.take == "greedy" else UniformSoupConfig)(top=self.retrain.count, **common)


class MergedSoupConfig(SoupBase):
    """A merge method over all that pass the checks, with equal weights."""

    described_by: ClassVar[type[Config] | None] = None
    """Whose fields these are: their texts stand there."""
    method: str
    """Name of the recipe."""

    @property
    def merge_method(self) -> dict[str, Any]:
        """The merge method as blends hold it."""
        own = self.model_dump(mode="json")
        return {"type": self.method, **{key: own[key] for key in own if key not in COMMON}}


COMMON = frozenset({"method", *SoupBase.model_fields})


def _as_recipe(config: type[Config]) -> type[MergedSoupConfig]:
    """A merge method's settings as a recipe of its own."""
    kind = str(config.model_fields["type"].default)
    fields: dict[str, Any] = {
        name: (info.annotation, info) for name, info in config.model_fields.items() if name != "type"
    }
    made = create_model(
        f"{config.__name__.removesuffix('Config')}SoupConfig",
        __base__=MergedSoupConfig,
        __module__=__name__,
        __doc__=config.__doc__,
        method=(cast(Any, Literal[kind]), Field(default=kind, description="Name of the recipe.")),
        **fields,
    )
    made.described_by = config
    return made


MERGE_METHODS: tuple[type[Config], ...] = get_args(get_args(MergeMethodConfig)[0])
"""The merge methods' settings."""
MERGED = tuple(_as_recipe(config) for config in MERGE_METHODS if config is not AverageConfig)
PLAIN = (
    UniformSoupConfig,
    WeightedSoupConfig,
    GreedySoupConfig,
    PrunedSoupConfig,
    LearnedSoupConfig,
    SearchSoupConfig,
    SparseSoupConfig,
)
SOUP_CONFIGS: tuple[type[SoupBase], ...] = (*PLAIN, *MERGED)
"""Every recipe's settings."""
SOUP_METHODS = tuple(str(config.model_fields["method"].default) for config in SOUP_CONFIGS)
"""Their names."""
DEFAULT = "greedy"


def _method(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("method", DEFAULT))
    return str(getattr(value, "method", DEFAULT))


if TYPE_CHECKING:
    SoupConfig = (
        UniformSoupConfig
        | WeightedSoupConfig
        | GreedySoupConfig
        | PrunedSoupConfig
        | LearnedSoupConfig
        | SearchSoupConfig
        | SparseSoupConfig
        | MergedSoupConfig
    )
else:
    _union = None
    for _config in SOUP_CONFIGS:
        _member = Annotated[_config, Tag(str(_config.model_fields["method"].default))]
        _union = _member if _union is None else _union | _member
    SoupConfig = Annotated[_union, Discriminator(_method)]


def parse_soup(data: Mapping[str, Any]) -> SoupConfig:
    """A soup's settings from JSON.

    Raises:
        pydantic.ValidationError: if they can't be.
    """
    parsed: SoupConfig = TypeAdapter(SoupConfig).validate_python(data)
    return parsed
