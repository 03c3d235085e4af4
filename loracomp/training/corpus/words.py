"""Nonsense words that can be said and mean nothing: the trigger words of the corpus."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "dr",
    "kl",
    "pl",
    "sk",
    "tr",
)
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "", "l", "m", "n", "r", "x")


def nonsense(count: int, seed: int, known: Iterable[str]) -> list[str]:
    """``count`` words of two or three syllables, no two within one letter of each other.

    Args:
        count: Words wanted.
        seed: Decides which.
        known: Words with a meaning; none of four letters or more is part of a nonsense word, or holds one.
    """
    meant = {word for text in known for word in text.lower().replace("-", " ").split() if len(word) > 3}
    rng = np.random.default_rng(seed)
    found: list[str] = []
    taken: set[str] = set()
    while len(found) < count:
        word = "".join(_syllable(rng) for _ in range(int(rng.integers(2, 4))))
        if not 5 <= len(word) <= 9 or any(m in word or word in m for m in meant):
            continue
        if _near(word) & taken:
            continue
        taken |= _near(word)
        found.append(word)
    return found


def _syllable(rng: np.random.Generator) -> str:
    return "".join(str(rng.choice(part)) for part in (_ONSETS, _VOWELS, _CODAS))


def _near(word: str) -> set[str]:
    """The word, and it with any letter left out or blurred: words one letter apart share one of these."""
    return {word} | {word[:i] + mark + word[i + 1 :] for i in range(len(word)) for mark in ("", "?")}
