"""What the door says about the baseline: it must be a configuration of this pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.config import FineTuneConfig
from sweeps.baselines import changes
from sweeps.complaints import complaints
from sweeps.draft import Draft, type_config
from sweeps.fields import lookup, overlay
from sweeps.yaml_source import Place


def check_baseline(draft: Draft, baseline: str | Mapping[str, Any]) -> dict[str, Any]:
    """The baseline's changes by dotted path, validated in the configuration they make.

    Args:
        draft: the file, whose `pipeline` is sound.
        baseline: as written: a name, or keys and values.
    """
    flat: dict[str, Any] = {}
    places: dict[str, Place] = {}
    if not isinstance(baseline, str):
        _flatten(draft, baseline, ("baseline",), (), flat, places)
    elif isinstance(draft.spec.pipeline, FineTuneConfig):
        flat = changes(baseline, draft.spec.pipeline, draft.spec.resources.together)
    else:
        kind = draft.spec.pipeline.type
        draft.wrong(("baseline",), f"'{baseline}' is a fine-tune's; for {kind} give changes to pipeline, or delete it")
    config = overlay(draft.spec.pipeline.model_dump(mode="json", exclude_unset=True), flat, draft.models)
    try:
        type_config(config, draft.spec.resources.together)
    except ValidationError as error:
        for found in complaints(error, config, draft.models, "baseline"):
            path = ".".join(str(part) for part in found.path)
            place = next((places[key] for key in places if path == key or path.startswith(f"{key}.")), ("baseline",))
            draft.document.problems.append(draft.document.problem(place, found.message, key=found.on_key))
    return flat


def _flatten(
    draft: Draft,
    raw: Mapping[str, Any],
    place: Place,
    path: tuple[str, ...],
    flat: dict[str, Any],
    places: dict[str, Place],
) -> None:
    for key, value in raw.items():
        words = tuple(key.split("."))
        here = (*path, *(words[1:] if not path and words[0] == "pipeline" else words))
        if isinstance(value, Mapping) and (not here or lookup(draft.models, here).models):
            _flatten(draft, value, (*place, key), here, flat, places)
        else:
            flat[".".join(here)] = value
            places[".".join(here)] = (*place, key)
