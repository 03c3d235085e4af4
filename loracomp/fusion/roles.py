"""A method of our own: what an adapter is for decides when, where and in which half of guidance it acts.

The layout of an image is fixed in its first steps and mostly in the inner blocks, its surface in the last
steps and in the way up (B-LoRA, arXiv:2403.14572, §4, finds two blocks of SDXL for content and style). So
a subject's adapter may lead where the layout is made, and a style's where the surface is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.blocks import ANY
from loracomp.fusion.program import METHODS, GateTable

SUBJECT = "subject"
Pair = Sequence[float]


@METHODS.register("roles", summary="subjects and styles in their own steps, blocks and halves of guidance")
def roles(
    weights: Tensor,
    steps: int,
    *,
    roles: Sequence[str] | None = None,
    handover: float = 0.4,
    early: Pair = (1.0, 1.0),
    late: Pair = (1.0, 1.0),
    down: Pair = (1.0, 1.0),
    mid: Pair = (1.0, 1.0),
    up: Pair = (1.0, 1.0),
    unconditional: Pair = (1.0, 1.0),
) -> GateTable:
    """Merge with factors (of subjects, of all others) on top of the weights.

    With a single adapter there is nothing to tell apart, and it acts as in merge.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        roles: ``subject`` or another word per adapter; where it is left out, what the files' headers say, and
            where they say nothing, ``subject`` for the first.
        handover: Share of the run where ``early`` ends and ``late`` begins, in [0, 1].
        early: Factors before it.
        late: Factors after it.
        down: Factors in a UNet's way down.
        mid: Factors in its middle.
        up: Factors in its way up.
        unconditional: Factors in the unconditional half of guidance: below 1, guidance strengthens what the
            adapters add.

    Raises:
        UsageError: An option of the wrong form.
    """
    count = len(weights)
    base = GateTable(weights.expand(steps, 1, -1).clone(), torch.ones(steps, 1))
    subjects = _subjects(roles, count)
    if not 0 <= handover <= 1:
        raise UsageError(f"handover {handover} is outside [0, 1]")
    names = ("early", "late", "down", "mid", "up", "unconditional")
    pairs = (early, late, down, mid, up, unconditional)
    factors = {name: _factors(name, pair, subjects) for name, pair in zip(names, pairs, strict=True)}
    if count == 1:
        return base
    first = torch.arange(steps) < round(handover * steps)
    curve = torch.where(first[:, None], factors["early"], factors["late"])
    blocks = {name: factors[name] for name in ("down", "mid", "up")}
    # Text encoders run once, before the first step, and belong to no part of the run.
    table = replace(base, blocks=({ANY: curve, "text": torch.ones(count)}, blocks))
    if bool((factors["unconditional"] == 1).all()):
        return table
    return replace(table, unconditional=replace(table, gates=base.gates * factors["unconditional"]))


def _subjects(roles: Sequence[str] | None, count: int) -> Tensor:
    """Which adapters are subjects, shape (adapters,), bool."""
    words = [SUBJECT, *["style"] * (count - 1)] if roles is None else list(roles)
    if len(words) != count or not all(isinstance(word, str) for word in words):
        raise UsageError(f"roles {words} for {count} adapters; give a word for each, {SUBJECT} or style")
    return torch.tensor([word == SUBJECT for word in words])


def _factors(name: str, pair: Pair, subjects: Tensor) -> Tensor:
    """Factor of each adapter, shape (adapters,)."""
    try:
        subject, other = map(float, pair)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} {pair!r}: two factors are needed, [subjects, others]") from error
    return torch.where(subjects, subject, other)
