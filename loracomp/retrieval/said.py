"""Texts as a base's text encoder reads them, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Said:
    """States of texts' tokens, without start and padding.

    Attributes:
        states: Shape (…, l, d).
        there: Which of them are tokens, shape (…, l), bool.
    """

    states: Tensor
    there: Tensor

    def __len__(self) -> int:
        return len(self.there)

    def __getitem__(self, place: Any) -> Said:
        return Said(self.states[place], self.there[place])

    def to(self, place: Any) -> Said:
        """On another device."""
        return Said(self.states.to(place), self.there.to(place))

    def half(self) -> Said:
        """In half precision."""
        return Said(self.states.half(), self.there)

    def mean(self) -> Tensor:
        """Mean state of each text, shape (…, d), float32."""
        kept = self.there[..., None]
        return (self.states.float() * kept).sum(-2) / kept.sum(-2).clamp_min(1)

    def minus(self, common: Tensor) -> Said:
        """Without what all texts share, a vector (d,)."""
        return Said(self.states - common.to(self.states), self.there)

    @staticmethod
    def join(parts: Sequence[Said]) -> Said:
        """One after another, shorter ones padded."""
        longest = max(part.there.shape[-1] for part in parts)
        short = [longest - part.there.shape[-1] for part in parts]
        kind = parts[0].states.dtype
        return Said(
            torch.cat([F.pad(p.states.to(kind), (0, 0, 0, n)) for p, n in zip(parts, short, strict=True)]),
            torch.cat([F.pad(p.there, (0, n)) for p, n in zip(parts, short, strict=True)]),
        )


TokenStates = Callable[[Sequence[str]], Said]
"""Texts to the states of their tokens."""
_TEXTS = 256


def of_all(speak: TokenStates, texts: Sequence[str]) -> Said:
    """All texts, some at a time."""
    return Said.join([speak(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)])
