"""The gate itself: how strongly each adapter's output enters a layer, per token and channel.

With y = W x + b the layer's own output and oᵢ = Bᵢ hᵢ that of adapter i, hᵢ = γᵢ ⊙ Aᵢ x, AutoLoRA
(arXiv:2508.02107) computes

    n_y = LN(y),  nᵢ = LN(oᵢ),  gᵢ = σ(p ⊙ n_y + q ⊙ nᵢ + m ⊙ n_y ⊙ nᵢ + b),  y ← y + Σ v ⊙ gᵢ ⊙ oᵢ

with vectors shared by all adapters, so that one gate serves any number of any adapters. Ours adds a shift
and a scale of the logits by noise level, ρᵢ (share of the energy that is others') and κᵢ (cosine with the
others' sum), and fades to 1 as ρᵢ goes to 0: the factor is 1 + ρᵢ / (ρᵢ + δ) · (2 v ⊙ gᵢ - 1).

Everything about an output but the output itself comes from rank space: its mean over channels is
hᵢ · (mean of Bᵢ's rows), its second moment hᵢᵀ (BᵢᵀBᵢ / d) hᵢ. Outputs are formed one adapter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from loracomp.fusion.gated.form import Form
from loracomp.fusion.gated.outputs import EPSILON, FADE, Numbers, Stack, numbers

Watch = Callable[[int, Tensor, Tensor], None]
"""Told the number of an adapter, its output and its factor."""


@dataclass(frozen=True)
class Vectors:
    """A layer's gate at one noise level; vectors broadcast to (…, tokens, d).

    Attributes:
        named: By the names of :attr:`Form.rows`, without those of time.
        bias: b with its shift.
        scale: Factor of the other terms; None for 1.
    """

    named: Mapping[str, Tensor]
    bias: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, form: Form, values: Tensor, level: Tensor | None = None) -> Vectors:
        """From stored vectors (rows, d) at noise levels features (…, time), which keep their leading axes."""
        named = dict(zip(form.rows, values, strict=True))
        if not form.time or level is None:
            return cls(named, named["b"], None)
        first = len(form.rows) - 2 * form.time
        shift, scale = values[first:].unflatten(0, (2, form.time))
        phases = level.to(values).unsqueeze(-2)
        return cls(named, named["b"] + phases @ shift, 1 + phases @ scale)


def normalized(y: Tensor, named: Mapping[str, Tensor], moments: tuple[Tensor, Tensor] | None) -> Tensor:
    """n_y: layer norm of y (…, d); ``moments`` are mean and 1 / std of a layer that it is part of."""
    if moments is None:
        return F.layer_norm(y, y.shape[-1:], named["base_weight"], named["base_bias"], EPSILON)
    mean, rstd = (part.to(y.dtype) for part in moments)
    return (y - mean) * rstd * named["base_weight"] + named["base_bias"]


@dataclass(frozen=True)
class Logits:
    """The logits of all adapters as a function of each one's own numbers: z = level + slope ⊙ n + … .

    Attributes:
        level: What does not depend on the adapter, shape (…, tokens, d).
        slope: What the normalized output is multiplied with, or None.
        share: What ρ is multiplied with, or None.
        cosine: What κ is multiplied with, or None.
    """

    level: Tensor
    slope: Tensor | None
    share: Tensor | None
    cosine: Tensor | None

    @classmethod
    def of(cls, form: Form, vectors: Vectors, y: Tensor, moments: tuple[Tensor, Tensor] | None) -> Logits:
        """At a layer's own output; the terms are gathered by what they have in common."""
        named, scale = vectors.named, vectors.scale
        level: Tensor | None = None
        slope = named["q"] if form.lora else None
        if form.base or form.cross:
            base = normalized(y, named, moments)
            level = named["p"] * base if form.base else None
            if form.cross:
                cross = named["m"] * base
                slope = cross if slope is None else slope + cross
        if slope is not None:
            bias = slope * named["lora_bias"]
            level, slope = bias if level is None else level + bias, slope * named["lora_weight"]
        parts = [slope, *((named["share"], named["cosine"]) if form.competition else (None, None))]
        if scale is not None:
            level = None if level is None else level * scale
            parts = [None if part is None else part * scale for part in parts]
        return cls(vectors.bias if level is None else level + vectors.bias, *parts)

    def at(self, own: Tensor, of: Numbers, i: int) -> Tensor:
        """The logits of adapter i, whose output is ``own`` (…, tokens, d)."""
        z = self.level
        if self.slope is not None:
            z = torch.addcmul(z, self.slope, (own - of.mean[..., i, None]) * of.rstd[..., i, None])
        if self.share is not None and self.cosine is not None:
            z = torch.addcmul(z, self.share, of.share[..., i, None])
            z = torch.addcmul(z, self.cosine, of.cosine[..., i, None])
        return z


def update(
    form: Form,
    vectors: Vectors,
    y: Tensor,
    hidden: Tensor,
    stack: Stack,
    free: Tensor | None = None,
    known: Numbers | None = None,
    moments: tuple[Tensor, Tensor] | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Σ (1 + fᵢ (factorᵢ - 1)) ⊙ oᵢ, shape (…, tokens, d): what a layer adds to its own output.

    Args:
        form: Which terms there are.
        vectors: The layer's gate.
        y: The layer's own output, shape (…, tokens, d).
        hidden: h of all ranks, shape (…, tokens, C), of the global adapter too where there is one.
        stack: The adapters.
        free: f, how far each adapter is gated, 0 for not at all; broadcasts to (…, tokens, adapters); None
            for 1.
        known: From :func:`numbers`; computed where left out.
        moments: See :func:`normalized`.
        watch: Told the number of each adapter, its output and what that is multiplied with.
    """
    known = known or numbers(hidden, stack.grams, free)
    of = Numbers(*(part.to(hidden.dtype) for part in (known.mean, known.rstd, known.share, known.cosine)))
    logits = Logits.of(form, vectors, y, moments)
    fade = of.share / (of.share + FADE) if form.solo else of.share
    strength = 2 * vectors.named["v"] if form.solo else vectors.named["v"]
    total: Tensor | None = None
    for i, (first, end) in enumerate(stack.spans):
        if first == end:
            continue
        own = hidden[..., first:end] @ stack.up[..., first:end].mT
        held = strength * torch.sigmoid(logits.at(own, of, i))
        if form.solo:
            held = torch.addcmul(1 - fade[..., i, None], fade[..., i, None], held)
        held = _followed(form, held, None if free is None else free[..., i, None], stack, i)
        total = own * held if total is None else torch.addcmul(total, own, held)
        if watch is not None:
            watch(i, own, held)
    return torch.zeros_like(y) if total is None else total


def _followed(form: Form, factor: Tensor, share: Tensor | None, stack: Stack, i: int) -> Tensor:
    """The factor as far as it is followed; that of the global adapter is what it adds at all."""
    if stack.mix is not None and i == len(stack.spans) - 1:
        # Nothing where the gate is off, and where ours begins.
        factor = factor - 1 if form.solo else factor
        return factor if share is None else share.to(factor.dtype) * factor
    return factor if share is None else 1 + share.to(factor.dtype) * (factor - 1)
