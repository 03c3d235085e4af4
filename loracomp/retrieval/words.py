"""Search by the words that adapters' headers claim: the plain baseline beside what the weights say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import log

_WORD = re.compile(r"[^\W_]+")
_SATURATION, _LENGTH = 1.2, 0.75


def words(text: str) -> list[str]:
    """Lower-case words of a text, a plural's s left out."""
    found = (word.lower() for word in _WORD.findall(text))
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found]


def content(text: str) -> set[str]:
    """The words of a text that say what is wanted."""
    return set(words(text)) - _EMPTY


class WordIndex:
    """BM25 over short texts (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, §3.4).

    Args:
        texts: Pairs of an id and its text.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        self._lengths: dict[str, int] = {}
        self._places: dict[str, dict[str, int]] = {}
        for id_, text in texts:
            counts = Counter(words(text))
            self._lengths[id_] = sum(counts.values())
            for word, count in counts.items():
                self._places.setdefault(word, {})[id_] = count
        self._mean = sum(self._lengths.values()) / max(len(self._lengths), 1)

    def _rarity(self, word: str) -> float:
        there = len(self._places.get(word, ()))
        return log(1 + (len(self._lengths) - there + 0.5) / (there + 0.5))

    def coverage(self, text: str, id_: str) -> float:
        """Share of a text's words that an id's text has, rare words counting more; in [0, 1]."""
        wanted = sorted(content(text))
        total = sum(self._rarity(word) for word in wanted)
        found = sum(self._rarity(word) for word in wanted if id_ in self._places.get(word, ()))
        return found / total if total > 0 else 0.0

    def search(self, text: str, k: int, among: set[str] | None = None) -> list[tuple[str, float]]:
        """The ``k`` ids of highest score above 0, best first; ties by id."""
        scores: dict[str, float] = defaultdict(float)
        for word in sorted(content(text)):
            there = self._places.get(word, {})
            rarity = self._rarity(word)
            for id_, count in there.items():
                if among is None or id_ in among:
                    share = self._lengths[id_] / self._mean
                    scores[id_] += rarity * (
                        count * (_SATURATION + 1) / (count + _SATURATION * (1 - _LENGTH + _LENGTH * share))
                    )
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


_EMPTY = frozenset(
    {"a", "an", "the", "of", "in", "on", "with", "and", "or", "style", "emoji", "image", "picture", "lora"}
)


def reciprocal_ranks(rankings: Sequence[tuple[float, Sequence[str]]], k: float = 60.0) -> dict[str, float]:
    """Fused scores of ids from weighted rankings (Cormack et al. 2009, reciprocal rank fusion).

    Args:
        rankings: Weight and ids, best first, of each ranking.
        k: How fast a rank loses weight.

    Returns:
        Σ weight / (k + rank), scaled so that the first of all rankings has 1.
    """
    scores: dict[str, float] = defaultdict(float)
    total = sum(weight for weight, _ in rankings)
    for weight, ids in rankings:
        for rank, id_ in enumerate(ids, 1):
            scores[id_] += weight * (k + 1) / (k + rank) / total
    return dict(scores)
