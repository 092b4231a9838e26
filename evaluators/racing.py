"""Who of several candidates is not the best: evidence that grows question by question and may be looked at any time.

All candidates answer the same questions in one random order; x_it in [0, 1] is candidate i's score on question t. The
null hypothesis of i is "i is the best": E[x_j - x_i] <= 0 for every j. Against it a gambler bets, before each question,
a share l of his wealth on the difference of others and i:

    W_i <- W_i * (1 + l * (y_t - x_it)),   0 <= l < 1,

where y is the mean of the `RIVALS` that led after the questions before (i itself left out), and l too depends on earlier
questions alone. Under the null W_i is a nonnegative supermartingale, so by Ville's inequality it ever reaches 1/a with
probability at most a, however often it is looked at and whoever was chosen as rivals (Waudby-Smith & Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 2024, arXiv 2010.09686). 1 / max W_i is an anytime-valid p-value,
and Holm's step-down over all candidates that began keeps the chance of one false elimination below alpha, whichever of
them are best. Since differences are paired, what makes a question hard for all cancels; since several rivals are
averaged, so does part of what makes it hard for one of them.

The bet is the paper's growth-rate approximation l = mean / (variance + mean^2) without its last term, with two
pseudo-observations of mean 0 and variance 1/4, cut to [0, CAP].

Left out: sampling without replacement (the questions stand for those to come), weights, groups of questions.

Example:
    >>> race = Race(3, alpha=0.05, keep=1)
    >>> race.ask(items)          # (3, 20): everybody still in, 20 more questions
    >>> race.eliminate()
    [2]
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

CAP = 0.9
RIVALS = 3
"""More of them are quieter, and further behind the leader."""
FIRST_BET = 0.1
PSEUDO, PSEUDO_VARIANCE = 2.0, 0.25

Floats = NDArray[np.float64]


class Race:
    """The state of a race: moments of the questions so far, wealth of each bet, who is still in.

    Args:
        candidates: how many begin.
        alpha: chance of ever eliminating one that is best.
        keep: so many are never eliminated.

    Attributes:
        alive: (candidates,) who is still in.
        evidence: (candidates,) the largest log-wealth so far against each being the best.
        asked: questions so far.

    Raises:
        ValueError: if the numbers make no sense.
    """

    def __init__(self, candidates: int, alpha: float = 0.05, keep: int = 1) -> None:
        if candidates < 1 or not 0 < alpha < 1 or keep < 1:
            raise ValueError(
                f"candidates and keep must be 1 or more, alpha in (0, 1), but got {candidates}, {keep}, {alpha}"
            )
        self.alpha = alpha
        self.keep = keep
        self.alive = np.ones(candidates, dtype=bool)
        self.evidence: Floats = np.zeros(candidates)
        self.asked = 0
        self._wealth: Floats = np.zeros(candidates)
        self._scores: Floats = np.zeros((candidates, 0))
        self._known = np.zeros((candidates, 0), dtype=bool)
        self._own_count, self._own_sum = np.zeros(candidates), np.zeros(candidates)
        self._rivals: NDArray[np.intp] = np.arange(candidates)
        self._seen = np.zeros((3, candidates))

    def ask(self, items: ArrayLike) -> None:
        """Take in the next questions.

        Args:
            items: (candidates, questions) scores in [0, 1]; NaN where one could not be scored, and for those that are
                out. A pair of which one is NaN says nothing.

        Raises:
            ValueError: if the shape is another, or a score lies outside [0, 1].
        """
        scores = np.asarray(items, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[0] != len(self.alive):
            raise ValueError(f"items must be (candidates, questions) of {len(self.alive)}, but got {scores.shape}")
        if bool((np.nan_to_num(scores, nan=0.5) < 0).any() or (np.nan_to_num(scores, nan=0.5) > 1).any()):
            raise ValueError("scores of a race must lie in [0, 1]")
        known = self.alive[:, None] & ~np.isnan(scores)
        self._scores = np.concatenate([self._scores, np.where(known, scores, 0.0)], axis=1)
        self._known = np.concatenate([self._known, known], axis=1)
        for _ in range(scores.shape[1]):
            self._bet()
            self.asked += 1

    def eliminate(self) -> list[int]:
        """Put out whoever is shown not to be the best, most evidence first; their places.

        Holm's step-down: with m candidates not yet out, one goes when its evidence reaches log(m / alpha).
        """
        gone = []
        for place in sorted(np.flatnonzero(self.alive), key=lambda i: (-self.evidence[i], i)):
            left = int(self.alive.sum())
            if left <= self.keep or self.evidence[place] < math.log(left / self.alpha):
                break
            self.alive[place] = False
            gone.append(int(place))
        return gone

    def drop(self, place: int) -> None:
        """Take a candidate out that failed; it counts no more."""
        self.alive[place] = False

    def settled(self, left: int) -> bool:
        """Whether nobody is likely to go any more: not even at the pace of differences one standard error larger than seen.

        Stopping changes no one's chance of a false elimination; it is a forecast, and says nothing about who is better.

        Args:
            left: questions still to come.
        """
        if int(self.alive.sum()) <= self.keep:
            return True
        count, total, squares = self._seen
        mean = total / (count + PSEUDO)
        variance = np.maximum((squares + PSEUDO * PSEUDO_VARIANCE) / (count + PSEUDO) - mean**2, 0.0)
        hoped = np.maximum(mean + np.sqrt(variance / (count + PSEUDO)), 0.0)
        second = np.maximum(variance + hoped**2, 1e-12)
        share = np.minimum(hoped / second, CAP)
        reach = self._wealth + left * (share * hoped - share**2 * second / 2)
        return not bool((reach[self.alive] >= math.log(int(self.alive.sum()) / self.alpha)).any())

    def _bet(self) -> None:
        """One question: bets made of the questions before, then paid, then the question is learned from."""
        x, known = self._scores[:, self.asked], self._known[:, self.asked]
        if self.asked:
            self._choose()
            count, total, squares = self._seen
            variance = (squares + PSEUDO * PSEUDO_VARIANCE) / (count + PSEUDO)
            share = np.minimum(np.maximum(total / (count + PSEUDO) / variance, 0.0), CAP)
        else:
            share = np.full(len(x), FIRST_BET)
        gain, there = differences(x, known, self._rivals)
        self._wealth += np.log1p(share * gain)
        np.maximum(self.evidence, self._wealth, out=self.evidence)
        self._seen += (there, gain, gain * gain)
        self._own_count += known
        self._own_sum += x

    def _choose(self) -> None:
        """Take those who lead as rivals, and look back at the questions before where they are others than last time."""
        ranked = self.alive & (self._own_count > 0)
        means = np.where(ranked, self._own_sum / np.maximum(self._own_count, 1), -np.inf)
        order = np.argsort(-means, kind="stable")
        rivals = np.sort(order[: min(RIVALS, int(np.count_nonzero(ranked)))])
        if not np.array_equal(rivals, self._rivals):
            self._rivals = rivals
            gains, there = differences(self._scores[:, : self.asked], self._known[:, : self.asked], rivals)
            self._seen = np.stack([there.sum(axis=1), gains.sum(axis=1), (gains * gains).sum(axis=1)])


def differences(scores: Floats, known: NDArray[np.bool_], rivals: NDArray[np.intp]) -> tuple[Floats, NDArray[np.bool_]]:
    """What the rivals have more than each candidate, in the mean, the candidate itself left out.

    Args:
        scores: (candidates, questions) or (candidates,), 0 where there is none.
        known: the same shape: where there is one.
        rivals: (n,) places; one without a score counts as the candidate's equal on that question.

    Returns:
        The differences, 0 where there is none, and where there is one: the candidate has a score, and another rival too.
    """
    own = np.zeros((len(scores), *[1] * (scores.ndim - 1)), dtype=np.intp)
    own[rivals] = 1
    have = known[rivals].sum(axis=0)
    mean = (known * scores[rivals].sum(axis=0) - scores * have) / np.maximum(len(rivals) - own, 1)
    return mean, known & (have > own)
