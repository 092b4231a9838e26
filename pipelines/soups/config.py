"""How weights are merged: the settings of each method, told apart by `type`. Only pydantic and the standard library.

A recipe (`pipelines/soups/recipes.py`) decides what goes in and with which weights; a method says what is made of it.
`pipelines.soups.METHODS` has the function of each type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from pipelines.config import Config, wrong


class AverageConfig(Config):
    """The weighted average Σ w·θ (Wortsman et al. 2022). The setting to begin with."""

    type: Literal["average"] = "average"
    """Name of the method."""


class SlerpConfig(Config):
    """Spherical interpolation of what training changed, tensor by tensor; for more than two models their spherical mean."""

    type: Literal["slerp"] = "slerp"
    """Name of the method."""


class TaskArithmeticConfig(Config):
    """Base plus a multiple of the weighted sum of the changes (Ilharco et al. 2023)."""

    type: Literal["task_arithmetic"] = "task_arithmetic"
    """Name of the method."""
    scaling: float = Field(default=1.0, gt=0)
    """Factor on the weighted mean of the changes; 1 is the average, the paper's λ on a plain sum of n changes is n·λ."""


class TiesConfig(Config):
    """Trims small changes, elects a sign for each number, averages the changes that agree with it (Yadav et al. 2023)."""

    type: Literal["ties"] = "ties"
    """Name of the method."""
    density: float = Field(default=0.2, gt=0, le=1)
    """Share of each tensor's changes that is kept, the largest ones."""
    elect: Literal["sum", "count"] = "sum"
    """What elects the sign: the sum of the weighted changes, or the number of models on each side."""


class DareConfig(Config):
    """Drops changes at random and rescales what stays (Yu et al. 2024)."""

    type: Literal["dare"] = "dare"
    """Name of the method."""
    density: float = Field(default=0.5, gt=0, le=1)
    """Chance of each change to be kept."""
    rescale: Literal["density", "l1"] = "density"
    """What stays is divided by the density (the paper), or brought back to the tensor's sum of magnitudes (mergekit)."""
    elect: Literal["none", "sum", "count"] = "none"
    """`none` adds up what stays; `sum` and `count` elect a sign first, as `ties` does."""


class DellaConfig(Config):
    """Drops changes at random, small ones of a row more often, and elects a sign (Deep et al. 2024)."""

    type: Literal["della"] = "della"
    """Name of the method."""
    density: float = Field(default=0.5, gt=0, le=1)
    """Mean chance of a change to be kept; 1 keeps all."""
    epsilon: float = Field(default=0.1, ge=0)
    """The smallest change of a row is kept with density - epsilon, the largest with density + epsilon."""
    rescale: Literal["density", "l1"] = "density"
    """What stays is divided by its own chance (the paper), or brought back to the tensor's sum of magnitudes (mergekit)."""
    elect: Literal["none", "sum", "count"] = "sum"
    """What elects the sign, as in `ties`; `none` adds up what stays."""

    @model_validator(mode="after")
    def chances_lie_between_zero_and_one(self) -> DellaConfig:
        """Keeping chances must be above 0 and at most 1."""
        if self.density < 1 and not (self.density - self.epsilon > 0 and self.density + self.epsilon <= 1):
            low, high = self.density - self.epsilon, self.density + self.epsilon
            raise wrong(
                "epsilon", f"chances from {low:g} to {high:g}; density ± epsilon must lie above 0 and at most at 1"
            )
        return self


class ModelStockConfig(Config):
    """The average moved toward the base by the angle between the changes (Jang et al. 2024). Needs no data."""

    type: Literal["model_stock"] = "model_stock"
    """Name of the method."""
    per: Literal["tensor", "row"] = "tensor"
    """What one angle is measured for: a tensor (the paper), or each row of it."""


class RegMeanConfig(Config):
    """Least squares on the inputs of each linear layer (Jin et al. 2023). Their Gram matrices are gathered on train."""

    type: Literal["regmean"] = "regmean"
    """Name of the method."""
    off_diagonal: float = Field(default=0.9, ge=0, lt=1)
    """Factor on the off-diagonal entries of the Gram matrices."""


MergeMethodConfig = Annotated[
    AverageConfig
    | SlerpConfig
    | TaskArithmeticConfig
    | TiesConfig
    | DareConfig
    | DellaConfig
    | ModelStockConfig
    | RegMeanConfig,
    Field(discriminator="type"),
]
"""Any method, told apart by `type`."""


def parse_method(record: Mapping[str, Any]) -> MergeMethodConfig:
    """A method from JSON.

    Raises:
        pydantic.ValidationError: if there is no such method or parameter.
    """
    method: MergeMethodConfig = TypeAdapter(MergeMethodConfig).validate_python(dict(record))
    return method
