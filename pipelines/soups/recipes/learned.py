"""The learned soup: weights of the ingredients trained by gradient on the rows that choose.

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), appendix I: softmax weights over the models, one set
for all or one a layer, and a temperature, trained with AdamW (lr .05, no decay). What is trained, and on what, stands in
`pipelines/soups/learned.py`; here the result is compared with the best single, on the rows that it was trained on: the
verdict is `test`'s business. The soup that is kept is the learned one where it scored, also where the best single was
better: that comparison too is flattered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.soups.base import Bench, Blend, Ingredient, SoupEvent, SoupNote, method_text
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.ranking import alone, rank, tell_left_out


class LearnedSoup:
    """Asks for trained weights of every ingredient that passes.

    Args:
        settings: `per`, `epochs`, `learning_rate`, `temperature`, `patience`, `seed` (`pipelines.soups.learned`).
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, settings: Mapping[str, Any], gate: Gate | None = None) -> None:
        self.settings, self.gate = dict(settings), gate or Gate()

    @classmethod
    def of(cls, config: Any) -> LearnedSoup:
        """As the file says."""
        keys = ("per", "epochs", "learning_rate", "temperature", "patience", "seed")
        return cls({key: getattr(config, key) for key in keys}, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The learned blend; its mixture holds each ingredient's mean weight.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        inside = self.gate.passing(ranking, bench)
        if len(inside) == 1:
            bench.tell(SoupEvent(inside[0], "start", ranking.best, ranking.best, "nothing to mix it with"))
            tell_left_out(ranking, ranking.best, bench)
            return alone(inside[0])
        learned = bench.learn(inside, self.settings)
        bench.tell(SoupNote("learned", {key: learned[key] for key in ("losses", "temperature", "epochs")}))
        coefficients: Mapping[str, Sequence[float]] = learned["coefficients"]
        means = [sum(column) / len(coefficients) for column in zip(*coefficients.values(), strict=True)]
        method = {"type": "learned", "per": self.settings["per"], "coefficients": dict(coefficients)}
        blend = Blend(tuple(zip(inside, means, strict=True)), method_text(method))
        score = bench.score(blend)
        for place, (run, weight) in enumerate(blend.mixture):
            single = ranking.scores[ranking.runs.index(run)]
            spread = [column[place] for column in coefficients.values()]
            reason = f"learned weight {weight:.3g}"
            reason += f" ({min(spread):.2g} to {max(spread):.2g})" if len(spread) > 1 else ""
            bench.tell(SoupEvent(run, "accept" if place else "start", single.value, score.value, reason))
        tell_left_out(ranking, score.value, bench)
        return blend
