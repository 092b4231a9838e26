"""Models made of some of another model's layers: how they are named and which layers they keep. Nothing is loaded.

`layers://4/SOURCE` is SOURCE with 4 of its decoder layers, `layers://0,9,19,29/SOURCE` with these. People write
`keep_layers` beside `base_model`; the door makes the name, and whoever takes a model's name understands it.

Example:
    >>> cut_name("HuggingFaceTB/SmolLM2-135M", 4)
    'layers://4/HuggingFaceTB/SmolLM2-135M'
    >>> kept_layers(4, 30)
    (0, 10, 19, 29)
"""

from __future__ import annotations

from pipelines.stage import UserError

LAYERS = "layers://"
Keep = int | tuple[int, ...]
"""How many layers at even distances, the first and the last among them; or which, counted from 0."""


def cut_name(source: str, keep: Keep | None) -> str:
    """The name of a source with so many layers, whichever the name kept before; with None of the whole source."""
    _, whole = split_cut(source)
    if keep is None:
        return whole
    return f"{LAYERS}{keep if isinstance(keep, int) else ','.join(map(str, keep)) + ',' * (len(keep) == 1)}/{whole}"


def split_cut(source: str) -> tuple[Keep | None, str]:
    """(what a name keeps, the whole source); None for a name that is no cut."""
    if not source.startswith(LAYERS):
        return None, source
    words, _, whole = source.removeprefix(LAYERS).partition("/")
    numbers = tuple(int(word) for word in words.split(",") if word)
    return (numbers if "," in words else numbers[0]), whole


def kept_layers(keep: Keep, layers: int) -> tuple[int, ...]:
    """Which of a model's layers are kept, ascending, counted from 0.

    Raises:
        UserError: if the model has fewer.
    """
    if isinstance(keep, int):
        if keep > layers:
            raise UserError(f"keep_layers: {keep} layers are to be kept, but the model has {layers}")
        if keep == 1:
            return (0,)
        return tuple((2 * at * (layers - 1) + keep - 1) // (2 * (keep - 1)) for at in range(keep))
    if keep[-1] >= layers:
        raise UserError(
            f"keep_layers: there is no layer {keep[-1]}: the model has {layers}, counted from 0 to {layers - 1}"
        )
    return keep
