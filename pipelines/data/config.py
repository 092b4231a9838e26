"""Where rows come from: the `datasets` section of a fine-tune. Only pydantic and the standard library are imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipelines.fields import HASH_PATTERN, Config, wrong


class DataFile(Config):
    """A dataset of its own."""

    path: str
    """File, folder or pattern of files (JSONL, JSON, CSV, TSV, Parquet, Arrow; relative to the sweep file), or hub id."""
    ds_type: Literal["json", "csv", "parquet", "arrow"] | None = None
    """Format of the files; by default what their suffix says."""
    name: str | None = None
    """Configuration of a hub data set, where it has several."""
    split: str | None = None
    """Split of a hub data set: `train` by default; `train[:10%]` is a part of it."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; `submit` fills in the commit, so that all trials see the same rows."""
    streaming: bool = False
    """Rows are read from disk when they are needed and never held in memory; for `train` alone."""
    content_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the file (of several: over all); filled in by `submit`, so that changed rows are refused."""
    type: Literal["chat", "prompt_completion", "text", "preference", "unpaired_preference"]
    """Shape of a row: `chat` (a list of messages), `prompt_completion` (two texts), `text` (one); `preference` (a prompt, a
    chosen and a rejected answer: texts, or lists of messages that may hold the prompt as their common beginning),
    `unpaired_preference` (a prompt, a completion, and a label: whether it is a good one)."""
    field_messages: str = "messages"
    """Key of the message list of `chat` rows."""
    field_prompt: str = "prompt"
    """Key of the prompt of `prompt_completion` rows and of preferences."""
    field_completion: str = "completion"
    """Key of the completion of `prompt_completion` and `unpaired_preference` rows."""
    field_chosen: str = "chosen"
    """Key of the better answer of `preference` rows."""
    field_rejected: str = "rejected"
    """Key of the worse answer of `preference` rows."""
    field_label: str = "label"
    """Key of `unpaired_preference` rows that says whether the completion is a good one (true or false)."""
    field_text: str = "text"
    """Key of the text of `text` rows."""
    group_by: str | None = None
    """Key whose value keeps rows together in splits and clusters errors; default: the prompt."""
    limit: int | None = Field(default=None, ge=1)
    """Rows used at most, the first ones in file order; all by default."""


class Fraction(Config):
    """A share of `train`, by hash of the prompt: stable and disjoint."""

    fraction: float = Field(gt=0, lt=1)
    """Share of the prompts of `train`."""


def _split_form(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<file>" if len(DataFile.model_fields.keys() & value.keys()) > ("fraction" in value) else "<fraction>"
    return "<file>" if isinstance(value, DataFile) else "<fraction>"


HeldOut = Annotated[
    Annotated[DataFile, Tag("<file>")] | Annotated[Fraction, Tag("<fraction>")], Discriminator(_split_form)
]
"""A split that is not trained on: a file of its own, or a share of `train`."""


class Datasets(Config):
    """The four splits."""

    train: DataFile
    """What is trained on."""
    tune: HeldOut = Fraction(fraction=0.1)
    """Decides during the sweep."""
    select: HeldOut | None = None
    """Chooses soups; needed when there is a soup."""
    test: HeldOut | None = None
    """Opened once, by the final step."""
    strategy: Literal["stacked", "phased"] = "stacked"
    """Several files of train (a folder or a pattern): all rows shuffled together, or, `phased`, one file after another in order
    of their names, each trained on for its share of the run (arXiv 2412.13337)."""
    on_duplicate: Literal["error", "drop_train"] = "error"
    """A prompt that stands in two splits' files: an error, or it is dropped from train."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that can't be used: an error that names it, or it is left out, counted and named in a warning."""

    @property
    def fractions(self) -> dict[str, float]:
        """The splits that are shares of `train`."""
        named = {"tune": self.tune, "select": self.select, "test": self.test}
        return {name: split.fraction for name, split in named.items() if isinstance(split, Fraction)}

    @property
    def files(self) -> dict[str, DataFile]:
        """The splits that are data sets of their own, `train` among them."""
        named = {"train": self.train, "tune": self.tune, "select": self.select, "test": self.test}
        return {name: split for name, split in named.items() if isinstance(split, DataFile)}

    @model_validator(mode="after")
    def only_train_is_streamed(self) -> Datasets:
        """Held-out rows are scored again and again, so they stay in memory (those taken from train by fraction do not)."""
        for name in ("tune", "select", "test"):
            if getattr(getattr(self, name), "streaming", False):
                raise wrong(f"{name}.streaming", "only train is streamed; delete the line")
        return self

    @model_validator(mode="after")
    def fractions_leave_rows_to_train_on(self) -> Datasets:
        """The fractions sum to less than 1."""
        total = math.fsum(self.fractions.values())
        if total >= 1:
            listed = " + ".join(f"{name} {value:g}" for name, value in self.fractions.items())
            name = next(iter(self.fractions))
            raise wrong(name, f"the fractions {listed} leave nothing to train on; they must sum to less than 1")
        return self
