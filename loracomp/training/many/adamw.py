"""AdamW on a stack: every seat with its own learning rate, betas, decay, clipping and step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loracomp.training.config import TrainConfig
from loracomp.training.many.stack import Stack
from loracomp.training.schedule import rate_of

EPSILON = 1e-8
IDLE = (math.inf, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
"""The row of a seat without an adapter: zeros stay zeros."""


def row_of(config: TrainConfig, step: int) -> tuple[float, ...]:
    """What :func:`update` needs to know about step ``step`` in [0, steps) of one run.

    Largest gradient norm, factor of the weights (decay), 1 - β₁, β₂, √(1 - β₂), and two numbers a and c
    with which the step is m / (a √v + c): a = (1 - β₁ᵗ) / (η √(1 - β₂ᵗ)), c = ε (1 - β₁ᵗ) / η.
    """
    rate, (one, two) = rate_of(config, step), config.betas
    first, second = 1 - one ** (step + 1), 1 - two ** (step + 1)
    return (
        config.clip,
        1 - rate * config.weight_decay,
        1 - one,
        two,
        math.sqrt(1 - two),
        first / (rate * math.sqrt(second)),
        EPSILON * first / rate,
    )


def update(stack: Stack, rows: Tensor) -> Tensor:
    """One step of AdamW (arXiv:1711.05101, algorithm 2) on all seats, after clipping each one's gradient.

    Works in place and without further memory: the gradients are used up.

    Args:
        stack: Values, gradients and moments, (S, numbers) each.
        rows: (7, S, 1), of each seat what :func:`row_of` gives.

    Returns:
        Norms of the gradients before clipping, (S,).
    """
    clip, decay, fresh, keep, root, spread, least = rows
    norms = torch.linalg.vector_norm(stack.grads, dim=1, keepdim=True)
    stack.grads.mul_((clip / (norms + 1e-6)).clamp(max=1.0))
    stack.values.mul_(decay)
    stack.first.lerp_(stack.grads, fresh)
    stack.grads.mul_(root)
    stack.second.mul_(keep).addcmul_(stack.grads, stack.grads)
    torch.sqrt(stack.second, out=stack.grads)
    stack.grads.mul_(spread).add_(least)
    stack.values.addcdiv_(stack.first, stack.grads, value=-1)
    return norms[:, 0]
