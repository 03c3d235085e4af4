"""How much the views of a search say, each by itself and all together."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from math import e, log, prod

from loracomp.retrieval import hearing
from loracomp.retrieval.words import reciprocal_ranks

Views = dict[str, list[tuple[str, float]]]
"""Ids and scores, best first, by view."""
WEIGHTS: Mapping[str, float] = {"learned": 2.0, "hears": 1.0, "words": 1.0, "update": 1.0, "says": 0.5}
"""What a view's ranks count for."""
EQUALS = 0.01
"""What ranks count for among adapters that are equally probable."""
NAMED = 0.95
"""A header that claims every word of a query is believed this much."""
UNDRAWN = 0.2
"""What is left of an encoder's probability where it read weights alone: it is right in 7 % of the validation
texts for which its calibration, made on drawn adapters, gives 38 %; 8 % for 33 % in the test."""
PRIOR = 0.3
"""Odds, before anything is heard, that the adapter that answers best is what was asked for."""
_TINY = 1e-12


def likely(confidence: float) -> float:
    """The most that a p-value of 1 - ``confidence`` can say, as a probability in [0, 1).

    The best of many unrelated adapters has any p-value as often as any other, so that one of ten searches
    for what is not there ends in a confidence above 0.9. The bound 1 / (-e p log p) on the Bayes factor
    takes that off (Sellke, Bayarri & Berger 2001, The American Statistician 55(1)); from p = 1/e on
    nothing is left.
    """
    p = max(1 - confidence, _TINY)
    if p >= 1 / e:
        return 0.0
    odds = PRIOR / (-e * p * log(p))
    return odds / (1 + odds)


def together(chances: Iterable[float]) -> float:
    """The probability that at least one of several independent signs is right, in [0, 1]."""
    return 1 - prod(1 - chance for chance in chances)


@dataclass(frozen=True)
class Signs:
    """How sure the views are of adapters, for one query.

    Attributes:
        among: How many adapters there are.
        learned: A learned encoder's probability that a best match of a cosine is one; None without one.
        known: Share of the query that the encoder understands, in [0, 1].
        coverage: Share of the query's words that an id's header has; None without headers.
        drawn: Ids that were drawn with.
    """

    among: int
    learned: Callable[[float], float] | None = None
    known: float = 1.0
    coverage: Callable[[str], float] | None = None
    drawn: Container[str] = ()

    def __call__(self, id_: str, said: Mapping[str, float]) -> dict[str, float]:
        """Probabilities by view for an adapter, from what the views say of it."""
        found = {}
        if self.learned is not None and "learned" in said:
            share = self.known if id_ in self.drawn else self.known * UNDRAWN
            found["learned"] = share * self.learned(said["learned"])
        if "hears" in said:
            found["hears"] = hearing.confidence(said["hears"], self.among)
        if self.coverage is not None and "words" in said:
            found["words"] = NAMED * self.coverage(id_)
        return found


def ordered(views: Views, signs: Signs | None = None) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of all ids, and what each view says of them.

    Args:
        views: What the views found.
        signs: How sure they are; ordered by ranks alone where None (reciprocal rank fusion).
    """
    weights = WEIGHTS if signs is None else {**WEIGHTS, "learned": signs.known * WEIGHTS["learned"]}
    scores = reciprocal_ranks(
        [(weights[name], [i for i, _ in found]) for name, found in views.items() if found]
    )
    places: dict[str, dict[str, float]] = {id_: {} for id_ in scores}
    for name, found in views.items():
        for rank, (id_, score) in enumerate(found, 1):
            places[id_] |= {name: score, f"{name}_rank": rank}
    if signs is not None:
        for id_, said in places.items():
            chances = signs(id_, said)
            if "hears" in chances:
                chances["hears"] = likely(chances["hears"])
            scores[id_] = together(chances.values()) + EQUALS * scores[id_]
    return scores, places
