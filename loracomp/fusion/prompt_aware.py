"""Switch and Composite that attend to how much of the prompt each adapter stands for (arXiv:2606.03792)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.program import METHODS, GateTable

FLOOR = 0.05
"""Least importance of an adapter whose words change nothing."""
ABSENT = 2.0
"""Importance of an adapter without whose words no prompt is left."""


@METHODS.register("w-switch", summary="taking turns, longer where the prompt stresses", paper="2606.03792")
def w_switch(
    weights: Tensor,
    steps: int,
    *,
    importance: Sequence[float] | None = None,
    measure: str = "ablated",
    period: float = 0.05,
    subject: int = 0,
    tail: float = 0.05,
) -> GateTable:
    """One adapter at a time; turns last max(1, round(τ · importance / largest importance)) steps.

    As in :func:`~loracomp.fusion.methods.switch` τ is max(1, round(period · steps)); at the end of the run
    the subject's adapter speaks alone. The released code applies its schedule one step late; this does not.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        importance: How much of the prompt each adapter stands for, above 0; found from the text encoder
            where it is left out; equal where there is none.
        measure: How it is found, ``ablated`` or ``triggers``.
        period: Length of the longest turn as a share of the run, in (0, 1].
        subject: Position of the adapter that speaks last.
        tail: Its time at the end as a share of the run, in [0, 1]; less than half a step is none.

    Raises:
        UsageError: An option outside its range.

    Reference: Prompt-aware multi-LoRA composition, arXiv:2606.03792, §3.
    """
    if not 0 < period <= 1 or not 0 <= tail <= 1:
        raise UsageError(f"period {period}, tail {tail}: they are shares of the run, in (0, 1] and [0, 1]")
    if not -len(weights) <= subject < len(weights):
        raise UsageError(f"subject {subject}: there are adapters 0 to {len(weights) - 1}")
    shares = _importance(importance, len(weights), measure)
    longest = max(1, round(period * steps))
    turns = [max(1, round(longest * float(share / shares.max()))) for share in shares]
    cycle = torch.arange(len(weights)).repeat_interleave(torch.tensor(turns))
    active = cycle.repeat(-(-steps // len(cycle)))[:steps].clone()
    if last := round(tail * steps):
        active[-last:] = range(len(weights))[subject]
    gates = torch.nn.functional.one_hot(active, len(weights)) * weights
    return GateTable(gates[:, None], torch.ones(steps, 1))


@METHODS.register("w-composite", summary="predictions averaged as the prompt stresses", paper="2606.03792")
def w_composite(
    weights: Tensor, steps: int, *, importance: Sequence[float] | None = None, measure: str = "triggers"
) -> GateTable:
    """One prediction per adapter, averaged with their importance as weights.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        importance: As in :func:`w_switch`.
        measure: As in :func:`w_switch`.

    Raises:
        UsageError: An option outside its range.

    Reference: Prompt-aware multi-LoRA composition, arXiv:2606.03792, §3.
    """
    shares = _importance(importance, len(weights), measure)
    gates = torch.diag(weights).expand(steps, -1, -1).clone()
    return GateTable(gates, shares.expand(steps, -1).clone())


def importance_of(whole: Tensor, without: Tensor, alone: Tensor, measure: str) -> float:
    """Importance of an adapter from pooled text embeddings, shape (width,) each.

    Args:
        whole: Of the prompt.
        without: Of the prompt without the adapter's words.
        alone: Of its words.
        measure: ``ablated``: 1 - cos(whole, without), at least 0.05; ``triggers``: cos(whole, alone), at
            least 0.05.
    """
    if measure == "triggers":
        return max(float(torch.cosine_similarity(whole, alone, dim=0)), FLOOR)
    return max(1 - float(torch.cosine_similarity(whole, without, dim=0)), FLOOR)


def _importance(values: Sequence[float] | None, count: int, measure: str) -> Tensor:
    """Shares that sum to 1, shape (adapters,)."""
    if measure not in ("ablated", "triggers"):
        raise UsageError(f"measure {measure!r}: ablated or triggers")
    given = [1.0] * count if values is None else list(values)
    if len(given) != count or not all(value > 0 for value in given):
        raise UsageError(f"importance {given} for {count} adapters; give a number above 0 for each")
    shares = torch.tensor(given, dtype=torch.float64)
    return (shares / shares.sum()).float()
