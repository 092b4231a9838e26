"""Who of several candidates is not the best: evidence that grows question by question and may be looked at any time.

All candidates answer the same questions in one random order; x_it in [0, 1] is candidate i's score on question t. The
null hypothesis of i is "i is the best": E[x_j - x_i] <= 0 for every j. Against it a gambler bets, before each question,
a share l of his wealth on the difference of another candidate j and i:

    W_i <- W_i * (1 + l * (x_jt - x_it)),   0 <= l < 1,

where j (the leader of the questions before, its runner-up for the leader itself) and l depend on earlier questions
alone. Under the null W_i is a nonnegative supermartingale, so by Ville's inequality it ever reaches 1/a with
probability at most a, however often it is looked at and whoever was chosen as j (Waudby-Smith & Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 2024, arXiv 2010.09686). 1 / max W_i is an anytime-valid p-value,
and Holm's step-down over all candidates that began keeps the chance of one false elimination below alpha, whichever of
them are best. Since differences are paired, what makes a question hard for all cancels.

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
        self._counts: Floats = np.zeros((candidates, candidates))
        self._sums: Floats = np.zeros((candidates, candidates))
        self._squares: Floats = np.zeros((candidates, candidates))

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
        scores = np.where(self.alive[:, None], scores, np.nan)
        for question in scores.T:
            self._bet(question)

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

    def _bet(self, x: Floats) -> None:
        """One question: bets made of what is known, then paid, then the question is learned from."""
        here = np.arange(len(x))
        rival = self._rivals()
        counts = self._counts[here, rival]
        mean = self._sums[here, rival] / (counts + PSEUDO)
        variance = (self._squares[here, rival] + PSEUDO * PSEUDO_VARIANCE) / (counts + PSEUDO)
        share = np.clip(mean / variance, 0.0, CAP)
        difference = x[rival] - x
        if self.asked == 0 and len(x) > 1 and not np.isnan(x).all():
            share = np.full(len(x), FIRST_BET)
            others = np.nansum(x) - np.nan_to_num(x)
            difference = others / max(1, int(np.count_nonzero(~np.isnan(x))) - 1) - x
        gain = np.where(np.isnan(difference) | ~self.alive, 0.0, share * np.nan_to_num(difference))
        self._wealth += np.log1p(gain)
        self.evidence = np.maximum(self.evidence, self._wealth)
        self._learn(x)

    def _rivals(self) -> NDArray[np.intp]:
        """For each candidate whom to bet on: the leader, and for the leader its runner-up."""
        means = np.full(len(self.alive), -np.inf)
        own = np.diag(self._counts)
        seen = self.alive & (own > 0)
        means[seen] = np.diag(self._sums)[seen] / own[seen]
        order = np.argsort(-means, kind="stable")
        rival = np.full(len(means), order[0])
        if len(order) > 1:
            rival[order[0]] = order[1]
        return rival

    def _learn(self, x: Floats) -> None:
        """Moments of x_j - x_i over the questions that both have, and on the diagonal of x_i itself."""
        known = ~np.isnan(x)
        both = np.outer(known, known)
        filled = np.nan_to_num(x)
        difference = filled[None, :] - filled[:, None]
        np.fill_diagonal(difference, filled)
        difference = np.where(both, difference, 0.0)
        self._counts += both
        self._sums += difference
        self._squares += difference**2
        self.asked += 1
