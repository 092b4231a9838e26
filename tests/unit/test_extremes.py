"""The largest and the smallest configuration of a space."""

from __future__ import annotations

from sweeps.extremes import extremes
from sweeps.space import Axis, Branch, Choice, Group, Interval, Space


def test_ends_of_ranges_and_values() -> None:
    space = Space(axes=(Axis("a", "a", Interval(2, 9, integer=True)), Axis("b", "b", Choice((5, 1, 7)))))
    largest, smallest = extremes(space, lambda p: p["a"] * p["b"])
    assert (largest, smallest) == ({"a": 9, "b": 7}, {"a": 2, "b": 1})


def test_a_cost_that_falls_along_an_axis() -> None:
    space = Space(axes=(Axis("a", "a", Interval(1.0, 4.0)),))
    assert extremes(space, lambda p: -p["a"])[0] == {"a": 1.0}


def test_what_does_not_matter_stays_at_its_first_value() -> None:
    space = Space(axes=(Axis("rate", "rate", Choice((3, 1, 2))), Axis("r", "r", Choice((8, 64, 16)))))
    asked = []

    def cost(parameters):
        asked.append(parameters["rate"])
        return parameters["r"]

    assert extremes(space, cost, lambda path: path == "r")[0] == {"rate": 3, "r": 64}
    assert set(asked) == {3}


def test_an_arm_is_judged_at_its_own_largest() -> None:
    lora = Space(axes=(Axis("adapter.lora.lora_r", "lora_r", Choice((1, 10_000))),))
    space = Space(branches=(Branch("adapter", {"lora": lora, "none": Space()}, key="adapter"),))

    def cost(parameters):
        return parameters["lora_r"] if parameters["adapter"] == "lora" else 500

    largest, smallest = extremes(space, cost)
    assert largest == {"adapter": "lora", "lora_r": 10_000}
    assert smallest == {"adapter": "lora", "lora_r": 1}


def test_paired_values_and_many_numbers() -> None:
    space = Space(
        axes=(Axis("n", "n", Choice(tuple(range(100)))),),
        groups=(Group("both", ({"x": 1, "y": 9}, {"x": 4, "y": 4}, {"x": 6, "y": 1})),),
    )
    assert extremes(space, lambda p: p["n"] + p["x"] * p["y"])[0] == {"n": 99, "x": 4, "y": 4}
