"""CMLoRA: one adapter leads at a time, the others follow from cached features (arXiv:2502.04923).

The intent of the paper as a table, for any number of steps. Its released code differs: it sorts adapters by
the names of their files, takes rings of the spectrum that do not exist at 64 × 64 latents, never uses the
cache at its own non-uniform schedule, and computes the decay of the leading share without applying it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.program import METHODS, GateTable

SHORT_ENDS = (0.375, 0.875)
"""Shares of the run between which features are renewed at the longer of the two intervals."""


@METHODS.register(
    "cmlora", summary="one adapter leads, sorted by frequency; others cached", paper="2502.04923"
)
def cmlora(
    weights: Tensor,
    steps: int,
    *,
    bands: Sequence[str] | None = None,
    switch_at: float = 0.55,
    decay: float = 0.5,
    intervals: Sequence[int] = (2, 3),
    staleness: float = 0.125,
    cached: bool = True,
) -> GateTable:
    """One prediction per adapter in each step, averaged with a larger share for the leading one.

    Until ``switch_at`` the adapters that add high frequencies take turns at leading, then all of them do,
    those of low frequency first. A turn is one interval of the refresh table; the leading adapter's
    features are renewed at its beginning, the others' when they are older than ``staleness``.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        bands: ``high``, ``low`` or ``unknown`` per adapter, as its frequency profile says; unknown ones, and
            all where None, count as high.
        switch_at: Share of the run after which low-frequency adapters lead too, in [0, 1]; 0.55 is step
            120 of the paper's 220.
        decay: The lead's odds fall by ``decay`` ** i after turn i, never below an equal share; 0 keeps them.
        intervals: Steps between refreshes at both ends of the run and in its middle.
        staleness: Longest age of any branch's features as a share of the run, in (0, 1]; 1 renews them
            only when their adapter leads.
        cached: Whether the table says when features are renewed. False, or a single adapter, leaves
            that open, and nothing is reused.

    Raises:
        UsageError: An option outside its range, or not one band per adapter.

    Reference: CMLoRA, Zou et al., ICLR 2025, arXiv:2502.04923, §3.
    """
    _check(switch_at, decay, intervals, staleness)
    marks = refresh_marks(steps, *intervals)
    leaders = leading(marks, _orders(len(weights), bands), switch_at)
    mix = _shares(leaders, marks, len(weights), decay)
    followed = cached and len(weights) > 1
    oldest = max(1, round(staleness * steps))
    refresh = _refreshed(leaders, marks, len(weights), oldest) if followed else None
    gates = torch.diag(weights).expand(steps, -1, -1).clone()
    return GateTable(gates, mix, refresh=refresh)


def refresh_marks(steps: int, short: int, long: int) -> Tensor:
    """Steps that begin an interval, shape (steps,), bool: ``short`` at both ends, ``long`` in the middle.

    The first step always does, and so does the first one of each of the three parts.
    """
    first, last = (round(share * steps) for share in SHORT_ENDS)
    marks = torch.zeros(steps, dtype=torch.bool)
    for start, end, interval in ((0, first, short), (first, last, long), (last, steps, short)):
        marks[start:end:interval] = True
    return marks


def leading(marks: Tensor, orders: tuple[list[int], list[int]], switch_at: float) -> Tensor:
    """The leading adapter in each step, shape (steps,).

    Args:
        marks: Steps that begin a turn, shape (steps,).
        orders: The rotation of the early part and that of the late part.
        switch_at: Share of the run where the late part begins.
    """
    steps, turns = len(marks), [0, 0]
    leaders: list[int] = []
    for step, mark in enumerate(marks.tolist()):
        late = int(step + 1e-9 >= switch_at * steps)
        if mark or not leaders:
            leaders.append(orders[late][turns[late] % len(orders[late])])
            turns[late] += 1
        else:
            leaders.append(leaders[-1])
    return torch.tensor(leaders)


def leading_share(count: int, fallen: float = 0.0) -> float:
    """Share of the leading one among ``count`` adapters: c / (c + N - 1) with odds c = N - ½ - ``fallen``.

    Never below 1 / N.
    """
    odds = max(count - 0.5 - fallen, 1.0)
    return odds / (odds + count - 1) if count > 1 else 1.0


def _orders(count: int, bands: Sequence[str] | None) -> tuple[list[int], list[int]]:
    """Positions that lead early, and late."""
    bands = list(bands) if bands is not None else ["unknown"] * count
    if len(bands) != count or set(bands) - {"high", "low", "unknown"}:
        raise UsageError(f"bands {bands} for {count} adapters; give high, low or unknown for each")
    low = [index for index, band in enumerate(bands) if band == "low"]
    high = [index for index in range(count) if index not in low]
    return high or low, low + high


def _shares(leaders: Tensor, marks: Tensor, count: int, decay: float) -> Tensor:
    """Share of each adapter's prediction, shape (steps, adapters)."""
    turns = (marks.long().cumsum(0) - 1).tolist()
    fallen = [
        sum(decay**turn for turn in range(1, done + 1)) if decay else 0.0 for done in range(turns[-1] + 1)
    ]
    lead = torch.tensor([leading_share(count, fallen[turn]) for turn in turns])
    rest = (1 - lead) / max(count - 1, 1)
    led = torch.nn.functional.one_hot(leaders, count).float()
    return led * lead[:, None] + (1 - led) * rest[:, None]


def _refreshed(leaders: Tensor, marks: Tensor, count: int, oldest: int) -> Tensor:
    """Branches whose features are renewed, shape (steps, adapters), bool."""
    refresh = torch.zeros(len(leaders), count, dtype=torch.bool)
    age = torch.full((count,), oldest)
    for step, leader in enumerate(leaders.tolist()):
        refresh[step] = age >= oldest
        refresh[step, leader] |= marks[step]
        age = torch.where(refresh[step], 1, age + 1)
    return refresh


def _check(switch_at: float, decay: float, intervals: Sequence[int], staleness: float) -> None:
    if not 0 <= switch_at <= 1 or not 0 <= decay < 1 or not 0 < staleness <= 1:
        raise UsageError(
            f"switch_at {switch_at}, decay {decay}, staleness {staleness}: "
            "they lie in [0, 1], [0, 1) and (0, 1]"
        )
    if len(intervals) != 2 or any(int(number) != number or number < 1 for number in intervals):
        raise UsageError(f"intervals {list(intervals)}: two whole numbers of steps from 1 are needed")
