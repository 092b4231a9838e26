"""Training some of a model's own weights: which parameters stay frozen. As Axolotl's `unfrozen_parameters`."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from typing import Any

from pipelines.stage import UserError

_log = logging.getLogger(__name__)


def unfreeze(model: Any, patterns: Sequence[str] | None) -> list[str]:
    """Let gradients flow into the parameters whose name a pattern matches from its beginning, and into no other.

    Weights that are tied are one parameter: either name unfreezes it.

    Args:
        model: the model; every `requires_grad` is set.
        patterns: regular expressions; None unfreezes everything.

    Returns:
        Names of the parameters that are trained, each once.

    Raises:
        UserError: naming every pattern that matches no parameter.
    """
    if patterns is None:
        model.requires_grad_(True)
        return [name for name, _ in model.named_parameters()]
    every = dict(model.named_parameters(remove_duplicate=False))
    unused = [pattern for pattern in patterns if not any(re.match(pattern, name) for name in every)]
    if unused:
        raise UserError("unfrozen_parameters: " + "; ".join(_no_match(pattern, list(every)) for pattern in unused))
    model.requires_grad_(False)
    chosen = [name for name in every if any(re.match(pattern, name) for pattern in patterns)]
    for name in chosen:
        every[name].requires_grad_(True)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name in trained:
        others = [other for other, parameter in every.items() if parameter is every[name] and other != name]
        if others:
            _log.warning("unfrozen_parameters: %s is tied to %s; both are trained", name, ", ".join(others))
    return trained


def _no_match(pattern: str, names: list[str]) -> str:
    plain = re.sub(r"[\\^$*+?()|{}]", "", pattern)
    near = [name for name in names if plain and plain in name][:3] or difflib.get_close_matches(plain, names, 3, 0.4)
    shown = near or [names[0], names[-1]]
    return f"{pattern!r} matches the beginning of no parameter's name; there are for example {', '.join(shown)}"
