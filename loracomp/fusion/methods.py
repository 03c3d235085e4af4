"""The training-free composition methods, each one function registered with its paper.

All of them are pure: weights in, :class:`~loracomp.fusion.program.GateTable` out. A method with one
branch costs one denoiser pass a step; with n branches, one pass over a batch n times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.program import METHODS, GateTable


def _one_branch(gates: Tensor) -> GateTable:
    """Table of a method that needs a single prediction; ``gates`` has shape (steps, adapters)."""
    return GateTable(gates[:, None, :], torch.ones(len(gates), 1))


@METHODS.register("merge", summary="all adapters in every step, as one sum", paper="2106.09685")
def merge(weights: Tensor, steps: int) -> GateTable:
    """W + Σ wᵢ ΔWᵢ throughout: what ``set_adapters`` of diffusers does.

    Reference: LoRA, Hu et al. 2021, arXiv:2106.09685, §4.1, summed over adapters.
    """
    return _one_branch(weights.expand(steps, -1).clone())


@METHODS.register("switch", summary="one adapter at a time, taking turns", paper="2402.16843")
def switch(weights: Tensor, steps: int, *, period: float = 0.05) -> GateTable:
    """Adapter ⌊(k mod N τ) / τ⌋ alone in step k, in the order given.

    The paper's τ = 5 was tuned on runs of 100 and 200 steps, so the period is relative here:
    τ = max(1, round(period · steps)).

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        period: Length of a turn as a share of the run, in (0, 1].

    Raises:
        UsageError: ``period`` outside (0, 1].

    Reference: Multi-LoRA Composition, Zhong et al. 2024, arXiv:2402.16843, §3.1 (LoRA Switch).
    """
    if not 0 < period <= 1:
        raise UsageError(f"period {period} is outside (0, 1]; it is the share of the run that a turn takes")
    turn = max(1, round(period * steps))
    active = torch.arange(steps).div(turn, rounding_mode="floor") % len(weights)
    return _one_branch(torch.nn.functional.one_hot(active, len(weights)) * weights)


@METHODS.register("composite", summary="one prediction per adapter, averaged", paper="2402.16843")
def composite(
    weights: Tensor,
    steps: int,
    *,
    shares: Sequence[float] | Sequence[Sequence[float]] = (),
    unconditional: str = "each",
) -> GateTable:
    """The mean over adapters of the predictions that each makes alone, computed as one batch.

    Averaging before or after classifier-free guidance is the same, since guidance is linear.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        shares: Share of each adapter's prediction, normalised to sum 1: one number per adapter, or a list of
            such rows that divide the run evenly. All alike by default.
        unconditional: ``each`` predicts the unconditional half with every adapter too, as the paper does;
            ``base`` predicts it once, without adapters, for n + 1 instead of 2 n predictions.

    Raises:
        UsageError: Shares that are not one per adapter, or do not have a positive sum; another word.

    Reference: Multi-LoRA Composition, Zhong et al. 2024, arXiv:2402.16843, §3.2 (LoRA Composite).
    """
    if unconditional not in ("each", "base"):
        raise UsageError(f"unconditional {unconditional!r}; there are each and base")
    gates = torch.diag(weights).expand(steps, -1, -1).clone()
    table = GateTable(gates, _shares(shares, len(weights), steps))
    if unconditional == "each":
        return table
    return replace(table, unconditional=GateTable(torch.zeros(steps, 1, len(weights)), torch.ones(steps, 1)))


def _shares(shares: Sequence[float] | Sequence[Sequence[float]], count: int, steps: int) -> Tensor:
    """Mixing weights (steps, count), rows sum to 1."""
    rows = torch.tensor(shares or [1.0] * count, dtype=torch.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != count or not bool((rows.sum(1) > 0).all()):
        raise UsageError(f"shares {shares} for {count} adapters; give one per adapter, with a positive sum")
    place = torch.arange(steps) * len(rows) // steps
    return (rows / rows.sum(1, keepdim=True))[place]
