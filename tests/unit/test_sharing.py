"""Who goes first on a shared cluster, dead drivers, and sweeps that nobody can serve; no Ray."""

from __future__ import annotations

import json
import random

import pytest

from cluster.base import Node
from cluster.sharing import DEAD_SECONDS, USELESS_SECONDS, Board, Claim, ahead

WHOLE = Node(8, 2)
LOW, HIGH = Claim("low"), Claim("high", priority=5)


def waiting(claim: Claim, cpus: float = 0.0, gpus: float = 0.0) -> Claim:
    return Claim(claim.sweep, claim.priority, True, cpus, gpus)


@pytest.mark.parametrize(
    ("own", "other", "holds_back"),
    [
        (LOW, waiting(HIGH), True),
        (LOW, HIGH, False),
        (HIGH, waiting(LOW), False),
        (waiting(HIGH, 8), waiting(LOW), False),
        (Claim("a", cpus=2), waiting(Claim("b"), 1), True),
        (waiting(Claim("a"), 1), waiting(Claim("b"), 1), False),
        (Claim("a", cpus=1), waiting(Claim("b"), 2), False),
        (Claim("a", gpus=1), waiting(Claim("b"), 3), True),
        (Claim("a", cpus=4, gpus=0.5), waiting(Claim("b"), 1, 1), False),
    ],
)
def test_the_higher_priority_goes_first_and_among_equals_who_holds_less(own, other, holds_back):
    assert ahead(own, [other], WHOLE) == (other if holds_back else None)


def test_the_first_of_several_is_named():
    others = [waiting(Claim("b", 1)), waiting(Claim("c", 3), 2), waiting(Claim("d", 3), 1), Claim("e", 9)]
    assert ahead(LOW, others, WHOLE) == others[2]


def any_claim(draw: random.Random) -> Claim:
    held = float(draw.randint(0, 3)), draw.choice([0.0, 0.5, 1.0, 2.0])
    return Claim(draw.choice("abc"), draw.randint(-1, 1), draw.random() < 0.7, *held)


def test_never_do_all_that_wait_hold_back_and_who_is_ahead_waits():
    draw = random.Random(0)
    for _ in range(1000):
        everyone = [any_claim(draw) for _ in range(draw.randint(1, 5))]
        held = [ahead(own, [*everyone[:i], *everyone[i + 1 :]], WHOLE) for i, own in enumerate(everyone)]
        wait = [found for claim, found in zip(everyone, held, strict=True) if claim.waiting]
        assert None in (wait or held), everyone
        assert all(found is None or found.waiting for found in held)


class Shelf(dict):
    """A `Store`."""

    def put(self, key, value):
        self[key] = value

    def all(self):
        return dict(self)

    def delete(self, key):
        self.pop(key, None)


def test_drivers_read_of_one_another_and_leave_nothing():
    shelf = Shelf()
    low, high = Board(shelf, LOW), Board(shelf, waiting(HIGH))
    assert low.look(WHOLE, 0) is None
    assert high.look(WHOLE, 0) is None
    assert low.look(WHOLE, 1) == waiting(HIGH)
    high.claim = HIGH
    high.look(WHOLE, 2)
    assert low.look(WHOLE, 2) is None
    low.leave()
    high.leave()
    assert shelf == {}


def test_a_driver_that_died_while_it_waited_holds_nobody_back():
    shelf = Shelf()
    low, high = Board(shelf, LOW), Board(shelf, waiting(HIGH))
    high.look(WHOLE, 0)
    assert low.look(WHOLE, 1e6) == waiting(HIGH), "what another clock says does not count"
    assert low.look(WHOLE, 1e6 + DEAD_SECONDS) == waiting(HIGH)
    assert low.look(WHOLE, 1e6 + DEAD_SECONDS + 1) is None
    assert len(shelf) == 1


def test_a_live_driver_is_never_taken_for_dead():
    shelf = Shelf()
    low, high = Board(shelf, Claim("low", cpus=1)), Board(shelf, waiting(HIGH))
    for second in range(0, 200, 5):
        high.look(WHOLE, second)
        assert low.look(WHOLE, second) == waiting(HIGH)


def test_an_entry_that_can_not_be_read_is_passed_over():
    shelf = Shelf({b"sweep-1": b"\xff", b"sweep-2": b"[]", b"sweep-3": json.dumps({"sweep": "x"}).encode()})
    assert Board(shelf, LOW).look(WHOLE, 0) is None


def test_nobody_waits_long_for_a_sweep_that_takes_nothing_of_what_stands_empty():
    shelf = Shelf()
    low, other, high = Board(shelf, LOW), Board(shelf, Claim("other", cpus=1)), Board(shelf, waiting(HIGH, 2))

    def look(second):
        high.look(WHOLE, second)
        other.look(WHOLE, second)
        return low.look(WHOLE, second)

    seconds = [float(second) for second in range(0, int(3 * USELESS_SECONDS), 5)]
    assert all(look(second) for second in seconds), "another one still holds what it may be waiting for"
    other.claim = Claim("other")
    start = seconds[-1] + 5
    assert all(look(start + second) for second in range(0, int(USELESS_SECONDS) + 1, 5))
    assert look(start + USELESS_SECONDS + 5) is None
    low.claim = Claim("low", cpus=4)
    assert look(start + USELESS_SECONDS + 10) is None, "it does not hold back again for what it took itself"
    high.claim = waiting(HIGH, 3)
    assert look(start + USELESS_SECONDS + 15) == waiting(HIGH, 3)
