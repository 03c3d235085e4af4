"""How strongly adapters respond to a text: a vector for the index, and the exact score of what it found.

The response Σ_i (f_i · h)² of :mod:`loracomp.retrieval.textprobes` is the inner product of Σ f_i f_iᵀ with
h hᵀ. Random signs s_j, t_j turn both into vectors, (s_jᵀ F t_j) and (s_j · h)(t_j · h), whose inner product
estimates it. Exact scores are z-scores of the log response among responses to the probe bank, so that
loud adapters do not answer every query.
"""

from __future__ import annotations

from functools import cache
from math import erfc

import torch
from torch import Tensor

from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.index import SPACES
from loracomp.retrieval.textprobes import TextBlock, heard

_TINY = 1e-20


@cache
def _signs(width: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(20250803 + width)
    draws = torch.randint(0, 2, (2, SPACES["hears"], width), generator=source).float() * 2 - 1
    return draws[0], draws[1]


def directions(block: TextBlock) -> Tensor:
    """Directions of both tracks, (16, d), each track at unit response."""
    size = block.listen.square().sum((1, 2), keepdim=True).sqrt().clamp_min(_TINY)
    return (block.listen / size).flatten(0, 1)


def adapter_vector(block: TextBlock) -> Tensor:
    """The adapter's vector in the space ``hears``, unit length, (512,)."""
    first, second = _signs(block.listen.shape[2])
    rows = directions(block)
    return _unit(((rows @ first.T) * (rows @ second.T)).sum(0))


def query_vector(state: Tensor) -> Tensor:
    """A text's vector in the space ``hears`` from its centered state (d,), unit length."""
    first, second = _signs(state.shape[0])
    return _unit((first @ state) * (second @ state))


def said_vector(block: TextBlock) -> Tensor:
    """The adapter's vector in the space ``says``: its pull of both tracks in 256 numbers, unit length."""
    return said_query(block.pull.sum(0))


def said_query(state: Tensor) -> Tensor:
    """A text state as a vector of the space ``says``: as it is up to 256 wide, else random signs of it."""
    width = SPACES["says"]
    if len(state) <= width:
        return _unit(torch.nn.functional.pad(state, (0, width - len(state))))
    return _unit(_signs(len(state))[0][:width] @ state)


def bank_responses(block: TextBlock, bank: ProbeBank) -> tuple[float, float]:
    """Mean and spread of the log response over the bank's prompts."""
    logs = heard(directions(block)[None], bank.states).clamp_min(_TINY).log()
    return float(logs.mean()), float(logs.std().clamp_min(1e-6))


def scores(probes: Tensor, means: Tensor, spreads: Tensor, states: Tensor) -> Tensor:
    """z-scores of adapters' responses to texts.

    Args:
        probes: Directions, shape (n, 16, d).
        means: Mean log response to the bank, shape (n,).
        spreads: Spread of it, shape (n,).
        states: Centered text states, shape (q, d).

    Returns:
        Shape (q, n).
    """
    return (heard(probes, states).clamp_min(_TINY).log() - means) / spreads


def confidence(score: float, among: int) -> float:
    """1 − the chance that the best of so many unrelated adapters has this z-score, for normal scores."""
    tail = 0.5 * erfc(score / 2**0.5)
    return max(0.0, 1.0 - tail) ** max(among, 1)


def _unit(vector: Tensor) -> Tensor:
    wide = vector.double()
    return (wide / wide.norm().clamp_min(_TINY)).float()
