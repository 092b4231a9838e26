import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.space import Axis, Branch, Choice, Group, Interval, Space


def inner(*axes: Axis) -> Space:
    return Space(axes=axes)


SPACE = Space(
    axes=(Axis("lora_r", "lora_r", Choice((8, 16))),),
    groups=(
        Group(
            "shape",
            (
                {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
                {"micro_batch_size": 8, "gradient_accumulation_steps": 1},
            ),
        ),
    ),
    branches=(
        Branch(
            "retrieve",
            {
                "bm25": inner(Axis("retrieve.bm25.k1", "retrieve.k1", Choice((0.9, 1.2, 1.5)))),
                "dense": inner(),
            },
        ),
    ),
)


def first(name, domain):
    return domain.values[0] if isinstance(domain, Choice) else domain.low


def test_sample_sets_paths_and_keeps_what_was_drawn():
    parameters, choices = SPACE.sample(first)
    assert parameters == {
        "lora_r": 8,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "retrieve.type": "bm25",
        "retrieve.k1": 0.9,
    }
    assert choices == {"lora_r": 8, "together.shape": 0, "retrieve": "bm25", "retrieve.bm25.k1": 0.9}


def test_only_the_chosen_arm_opens():
    parameters, choices = SPACE.sample(lambda name, domain: domain.values[-1])
    assert parameters["retrieve.type"] == "dense"
    assert "retrieve.k1" not in parameters
    assert "retrieve.bm25.k1" not in choices


def test_grid_is_the_product_with_arms_added_up_first_axis_slowest():
    grid = list(SPACE.grid())
    assert len(grid) == SPACE.size == 2 * 2 * (3 + 1)
    assert [choices["lora_r"] for choices in grid] == [8] * 8 + [16] * 8
    assert len({str(choices) for choices in grid}) == len(grid)
    assert grid[3] == {"lora_r": 8, "together.shape": 0, "retrieve": "dense"}


def test_replay_gives_the_parameters_of_recorded_choices():
    for choices in SPACE.grid():
        parameters, drawn = SPACE.sample(lambda name, domain, choices=choices: choices[name])
        assert drawn == choices
        assert SPACE.replay(choices) == parameters


def test_an_empty_space_has_one_configuration():
    assert Space().size == 1
    assert list(Space().grid()) == [{}]


def test_a_continuous_axis_has_no_grid_and_is_named():
    space = Space(branches=(Branch("a", {"x": inner(Axis("a.x.lr", "a.lr", Interval(0.1, 1.0)))}),))
    assert space.size is None
    assert list(space.continuous()) == ["a.x.lr"]
    with pytest.raises(ValueError, match=r"a\.x\.lr"):
        space.grid()


def test_whole_numbers_and_steps_have_a_grid():
    assert list(Interval(1, 4, integer=True).grid()) == [1, 2, 3, 4]
    assert all(isinstance(value, int) for value in Interval(8, 64, step=8, integer=True).grid())
    assert list(Interval(0.1, 0.5, step=0.1).grid()) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert list(Interval(0.0, 1.0, step=0.3).grid()) == [0.0, 0.3, 0.6, 0.9]


def test_branch_of_a_plain_key_sets_the_key_itself():
    branch = Branch(
        "adapter", {"lora": inner(Axis("adapter.lora.lora_r", "lora_r", Choice((4,)))), "none": inner()}, key="adapter"
    )
    space = Space(branches=(branch,))
    assert space.sample(first)[0] == {"adapter": "lora", "lora_r": 4}
    assert space.paths == ("adapter", "lora_r")


intervals = st.builds(
    lambda low, width, log, step, integer: Interval(
        float(max(1, round(low))) if integer else low,
        float(max(1, round(low)) + max(2, round(width))) if integer else low + width,
        log,
        (float(max(1, round(step))) if integer else step) if step else None,
        integer,
    ),
    st.floats(0.5, 100),
    st.floats(2.0, 1000),
    st.booleans(),
    st.none() | st.floats(0.25, 2.0),
    st.booleans(),
)


@given(intervals, st.floats(0, 1))
def test_scaled_shares_are_legal_values(interval, share):
    value = interval.scale(share)
    assert interval.low - 1e-9 <= value <= interval.high + 1e-9
    assert isinstance(value, int) == interval.integer
    assert math.isclose(interval.snap(value), value, rel_tol=1e-9)
    if interval.size is not None:
        k = (value - interval.low) / (interval.step or 1.0)
        assert abs(k - round(k)) < 1e-6


@pytest.mark.parametrize("log", [False, True])
def test_every_whole_number_is_drawn_and_logarithms_evenly(log):
    generator = random.Random(0)
    interval = Interval(1, 16, log=log, integer=True)
    drawn = [interval.scale(generator.random()) for _ in range(8000)]
    assert set(drawn) == set(range(1, 17))
    below = sum(value <= 4 for value in drawn) / len(drawn)
    expected = math.log(4.5 / 0.5) / math.log(16.5 / 0.5) if log else 0.25
    assert abs(below - expected) < 0.02
