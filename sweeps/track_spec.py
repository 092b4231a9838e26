"""Trackers: where else a sweep's numbers go. Types only; `sweeps.trackers` has what writes to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.fields import Config

PROJECT_PATTERN = r"^[^/\\#?%:]{1,128}$"


class TensorBoardConfig(Config):
    """Event files for TensorBoard: scalars of every run, and its parameters under HPARAMS. Needs the package tensorboard."""

    type: Literal["tensorboard"] = "tensorboard"
    log_dir: str | None = None
    """Folder of the event files; relative to the sweep file; default: `tensorboard` in the sweep's folder."""


class MLflowConfig(Config):
    """Runs of MLflow: one of the sweep, and below it one of every run. Needs the package mlflow-skinny (or mlflow)."""

    type: Literal["mlflow"] = "mlflow"
    tracking_uri: str | None = None
    """Server (`https://host`), database (`sqlite:///file.db`) or `databricks`; default: MLFLOW_TRACKING_URI of the shell that submits, else
    `mlflow.db` under `storage`. A server's user, password or token are read from MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and
    MLFLOW_TRACKING_TOKEN."""
    experiment_name: str | None = Field(default=None, min_length=1, max_length=400)
    """The experiment that the runs belong to; default: the sweep's name."""


class WandbConfig(Config):
    """Runs of Weights & Biases, in one group a sweep. Needs the package wandb."""

    type: Literal["wandb"] = "wandb"
    project: str | None = Field(default=None, pattern=PROJECT_PATTERN)
    """The project; default: the sweep's name."""
    entity: str | None = None
    """The user or team; default: the one that WANDB_API_KEY belongs to."""
    mode: Literal["online", "offline"] = "online"
    """`offline` only writes files into `wandb` in the sweep's folder, which `wandb sync` sends later."""


TrackConfig = Annotated[TensorBoardConfig | MLflowConfig | WandbConfig, Field(discriminator="type")]
"""One tracker."""
