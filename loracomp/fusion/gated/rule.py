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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from loracomp.fusion.gated.form import Form
from loracomp.fusion.gated.summary import directions

EPSILON = 1e-5
"""Of both layer norms, as published."""
FADE = 0.05
"""δ: the share of others' energy at which the gate has half its say."""
_TINY = 1e-12

Watch = Callable[[int, Tensor, Tensor], None]
Spans = Sequence[tuple[int, int]]
"""Each adapter's ranks, first and last but one, in the stacked rank axis."""


@dataclass(frozen=True)
class Grams:
    """Inner products of the up factors of all ranks C of a layer, or of all layers with joint statistics.

    Attributes:
        whole: UᵀU, shape (…, C, C).
        sums: Sum of each column of U, shape (…, C).
        owner: One-hot, shape (C, adapters).
        width: d, output channels.
        products: UᵀU / d within adapters, then of all, side by side, shape (…, C, 2 C).
        means: Means of the columns, each in its adapter's place, shape (…, C, adapters).
    """

    whole: Tensor
    sums: Tensor
    owner: Tensor
    width: int
    products: Tensor = field(init=False)
    means: Tensor = field(init=False)

    def __post_init__(self) -> None:
        within = self.whole * (self.owner @ self.owner.mT)
        object.__setattr__(self, "products", torch.cat([within, self.whole], dim=-1) / self.width)
        object.__setattr__(self, "means", self.sums.unsqueeze(-1) * self.owner / self.width)

    @classmethod
    def of(cls, up: Tensor, owner: Tensor) -> Grams:
        """From up factors (…, d, C) and the one-hot owners; at least in float32."""
        exact = up.to(torch.promote_types(up.dtype, torch.float32))
        return cls(exact.mT @ exact, exact.sum(-2), owner.to(exact), up.shape[-2])


@dataclass(frozen=True)
class Numbers:
    """What is known of each adapter's output at each token; all of shape (…, tokens, adapters).

    Attributes:
        mean: Mean over the channels.
        rstd: One over the standard deviation, :data:`EPSILON` in it.
        share: ρ, in [0, 1].
        cosine: κ, in [-1, 1]; 0 where either is nothing.
    """

    mean: Tensor
    rstd: Tensor
    share: Tensor
    cosine: Tensor


@dataclass(frozen=True)
class Stack:
    """All adapters of a layer.

    Attributes:
        up: Up factors, shape (…, d, C).
        spans: Each adapter's ranks.
        grams: Inner products of the up factors.
        mix: What makes the hidden values of a global adapter of the others', shape (…, ranks, its rank); it
            is the last of :attr:`spans` then. None where there is no global adapter.
    """

    up: Tensor
    spans: Spans
    grams: Grams
    mix: Tensor | None = None

    @classmethod
    def of(cls, form: Form, up: Tensor, down: Tensor, spans: Spans, owner: Tensor) -> Stack:
        """From the factors of all adapters, with the global one that the form asks for.

        Args:
            form: Which terms there are.
            up: Up factors, shape (…, d, C).
            down: Down factors, shape (…, C, inputs), with the scale of each rank unless it is in ``up``.
            spans: Each adapter's ranks.
            owner: One-hot, shape (C, adapters).
        """
        grams = Grams.of(up, owner)
        if not form.global_rank:
            return cls(up, spans, grams)
        exact = down.to(grams.sums.dtype)
        z = directions(grams.whole, exact @ exact.mT, form.global_rank)
        rank, count = z.shape[-2], z.shape[-1]
        whole = torch.cat([up, (up.to(z.dtype) @ z).to(up.dtype)], dim=-1)
        owners = torch.block_diag(grams.owner, torch.ones(count, 1).to(grams.owner))
        return cls(whole, [*spans, (rank, rank + count)], Grams.of(whole, owners), grams.whole @ z)

    def extended(self, form: Form, hidden: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Hidden values and freedom with those of the global adapter, if there is one.

        It is made of what is gated, and where the gate fades for one adapter alone, so does it.
        """
        if self.mix is None:
            return hidden, free
        ranks = hidden.shape[-1]
        owner = self.grams.owner[:ranks, :-1]
        known = hidden.to(self.mix.dtype)
        if free is not None:
            known = known * ((free != 0).to(owner) @ owner.mT)
        extra = known @ self.mix
        if form.solo:
            whole, sums = self.grams.whole[..., :ranks, :ranks], self.grams.sums[..., :ranks]
            grams = Grams(whole, sums, owner, self.grams.width)
            own = 1 - numbers(hidden, grams, free).share
            spread = (1 - own.square().sum(-1, keepdim=True)).clamp_min(0)
            extra = extra * spread / (spread + FADE)
        if free is not None:
            free = torch.cat([free, free.amax(-1, keepdim=True)], dim=-1)
        return torch.cat([hidden, extra.to(hidden.dtype)], dim=-1), free


def numbers(hidden: Tensor, grams: Grams, free: Tensor | None = None) -> Numbers:
    """Means, variances and interplay of outputs that are never formed.

    Args:
        hidden: h of all ranks, shape (…, tokens, C).
        grams: Of the up factors.
        free: 0 for adapters that are not gated, which count as absent; broadcasts to (…, tokens, adapters);
            None where all are.
    """
    h = hidden.to(grams.sums.dtype)
    if free is not None:
        h = h * ((free != 0).to(h) @ grams.owner.mT)
    both = (h @ grams.products).unflatten(-1, (2, h.shape[-1])) * h.unsqueeze(-2) @ grams.owner
    energy, inner = both[..., 0, :].clamp_min(0), both[..., 1, :]
    mean = h @ grams.means
    total = energy.sum(-1, keepdim=True)
    others = (inner.sum(-1, keepdim=True) - 2 * inner + energy).clamp_min(0)
    return Numbers(
        mean,
        (energy - mean.square()).clamp_min(0).add(EPSILON).rsqrt(),
        (total - energy) / (total + _TINY),
        (inner - energy) * (energy * others + _TINY).rsqrt(),
    )


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
