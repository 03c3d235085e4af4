"""Contrastive losses in which a query may have several right answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy against the mean of all positives (Khosla et al. 2020, arXiv:2004.11362, eq. 2).

    Args:
        logits: Shape (n, m).
        positive: Which pairs belong together, shape (n, m), bool.

    Returns:
        Mean over rows that have a positive; 0 where none has.
    """
    counts = positive.sum(1)
    logs = logits.log_softmax(1).masked_fill(~positive, 0.0).sum(1)
    kept = counts > 0
    return -(logs[kept] / counts[kept]).mean() if bool(kept.any()) else logits[:0].sum()


def symmetric(first: Tensor, second: Tensor, positive: Tensor, scale: Tensor | float) -> Tensor:
    """Both directions of :func:`multi_positive` between two sets of unit vectors.

    Args:
        first: Shape (n, d).
        second: Shape (m, d).
        positive: Shape (n, m), bool.
        scale: Inverse temperature.
    """
    logits = first @ second.T * scale
    return (multi_positive(logits, positive) + multi_positive(logits.T, positive.T)) / 2


def within(vectors: Tensor, concepts: Tensor, scale: Tensor | float) -> Tensor:
    """:func:`multi_positive` among vectors themselves: those of one concept belong together."""
    same = concepts[:, None] == concepts
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.T * scale).masked_fill(itself, torch.finfo(vectors.dtype).min)
    return multi_positive(logits, same & ~itself)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Mean of 1 − cosine between two views of the same adapters, in [0, 2]."""
    return (1 - F.cosine_similarity(first, second)).mean()
