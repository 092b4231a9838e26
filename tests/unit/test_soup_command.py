"""What `stockpot soup` makes of its arguments and the file's section."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from soup_machine import load

from sweeps.commands.places import UsageError
from sweeps.commands.soups import _config


def asked(folder: Path, method: str | None = None, top: int | None = None, *sets: str):  # type: ignore[no-untyped-def]
    return _config(Namespace(method=method, top=top, sets=list(sets)), load(folder))


def test_arguments_go_over_the_file_and_another_method_keeps_what_all_have(tmp_path: Path) -> None:
    assert (asked(tmp_path).method, asked(tmp_path).top) == ("greedy", 4)
    other = asked(tmp_path, "pruned", None, "barrier=false", "merge.type=ties", "merge.density=0.3")
    assert (other.method, other.top, other.barrier, other.merge.density) == ("pruned", 4, False, 0.3)
    assert asked(tmp_path, "weighted", 3, "weights=[3, 1]").weights == (3.0, 1.0)
    assert asked(tmp_path, "model_stock", None, "soup.per=row").merge_method == {"type": "model_stock", "per": "row"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("greedi", None), "did you mean 'greedy'?"),
        (("greedy", 1), "--top must be at least 2"),
        (("weighted", None), "soup.weights: is missing"),
        (("ties", None, "density=2"), "soup.density: 2 is not at most 1"),
        (("greedy", None, "tiee=accept"), "did you mean 'tie'?"),
        (("greedy", None, "tie"), "write KEY=VALUE"),
    ],
)
def test_mistakes_are_one_readable_message(tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(tmp_path, *arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)
