"""A prompt taken apart into the things that an adapter may stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARTS = re.compile(
    r"\s*(?:[,;]|\b(?:and|with|next to|beside|in front of|behind|under|over|on top of|made of)\b)\s*", re.I
)
_STYLE = re.compile(
    r"\s*\b(?:(?:drawn|painted|done|made)\s+)?(?:in|as|like)\s+(?:(?:the|an?)\s+)?"
    r"(?=(?:(?!(?:in|as|like)\b)\S+\s+){0,3}(?:style|look|manner)\b)",
    re.I,
)
_STYLED = re.compile(r"\b(?:style|look|manner)\b", re.I)
_LEAD = re.compile(
    r"^(?:(?:a|an|the|some|one|two|three|picture|image|photo|drawing|painting|of|it|its)\b\s*)+", re.I
)
_LEAST = 2
_MOST = 6


@dataclass(frozen=True)
class Span:
    """A part of a prompt.

    Attributes:
        text: Its words.
        style: Whether it says how, not what.
    """

    text: str
    style: bool


def spans(prompt: str) -> list[Span]:
    """The concepts of a prompt, in order: what stands between commas, ``and``, ``with``, ``in … style``.

    A prompt of one concept is one span. Parts that say nothing by themselves are left out; six at most.
    """
    found: list[Span] = []
    for part in _PARTS.split(prompt):
        what, *how = _STYLE.split(part, maxsplit=1)
        for text, said in ((what, False), *((text, True) for text in how)):
            words = _LEAD.sub("", text.strip()).strip()
            style = said or bool(_STYLED.search(words))
            span = Span(words, style)
            if len(words) >= _LEAST and span not in found:
                found.append(span)
    return found[:_MOST] or ([Span(prompt.strip(), False)] if prompt.strip() else [])
