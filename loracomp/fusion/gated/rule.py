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
from dataclasses import dataclass

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
    """

    whole: Tensor
    sums: Tensor
    owner: Tensor
    width: int

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

    def extended(self, form: Form, hidden: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden values and freedom with those of the global adapter, if there is one.

        It is made of what is gated, and where the gate fades for one adapter alone, so does it.
        """
        if self.mix is None:
            return hidden, free
        ranks = hidden.shape[-1]
        owner = self.grams.owner[:ranks, :-1]
        present = (free != 0).to(owner) @ owner.mT
        extra = (hidden.to(self.mix.dtype) * present) @ self.mix
        if form.solo:
            whole, sums = self.grams.whole[..., :ranks, :ranks], self.grams.sums[..., :ranks]
            grams = Grams(whole, sums, owner, self.grams.width)
            own = 1 - numbers(hidden, grams, free).share
            spread = (1 - own.square().sum(-1, keepdim=True)).clamp_min(0)
            extra = extra * spread / (spread + FADE)
        most = free.amax(-1, keepdim=True)
        return torch.cat([hidden, extra.to(hidden.dtype)], dim=-1), torch.cat([free, most], dim=-1)


def numbers(hidden: Tensor, grams: Grams, free: Tensor) -> Numbers:
    """Means, variances and interplay of outputs that are never formed.

    Args:
        hidden: h of all ranks, shape (…, tokens, C).
        grams: Of the up factors.
        free: 0 for adapters that are not gated, which count as absent; broadcasts to (…, tokens, adapters).
    """
    h, owner, width = hidden.to(grams.sums.dtype), grams.owner, grams.width
    own = ((h @ (grams.whole * (owner @ owner.mT))) * h) @ owner / width
    mean = (h * grams.sums.unsqueeze(-2)) @ owner / width
    present = (free != 0).to(h)
    energy = own.clamp_min(0) * present
    rows = present @ owner.mT
    both = h * rows
    inner = ((both @ grams.whole) * both) @ owner / width
    total = energy.sum(-1, keepdim=True)
    others = (inner.sum(-1, keepdim=True) - 2 * inner + energy).clamp_min(0)
    return Numbers(
        mean,
        (own - mean.square()).clamp_min(0).add(EPSILON).rsqrt(),
        ((total - energy) / (total + _TINY)).clamp(0, 1),
        ((inner - energy) * (energy * others + _TINY).rsqrt()).clamp(-1, 1),
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


def normalized(y: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Layer norm of y (…, d) without weights; ``moments`` are mean and 1 / std of a wider layer."""
    if moments is None:
        return F.layer_norm(y, y.shape[-1:], eps=EPSILON)
    return (y - moments[0].to(y.dtype)) * moments[1].to(y.dtype)


def factor(form: Form, vectors: Vectors, base: Tensor | None, own: Tensor, of: Numbers, i: int) -> Tensor:
    """What multiplies the output of adapter i, shape (…, tokens, d).

    Args:
        form: Which terms there are.
        vectors: The layer's gate.
        base: n_y; None where no term needs it.
        own: oᵢ.
        of: What is known of the outputs.
        i: Number of the adapter.
    """
    named, dtype = vectors.named, own.dtype
    terms: list[Tensor] = []
    if form.base and base is not None:
        terms.append(named["p"] * base)
    if form.lora or form.cross:
        inside = (own - of.mean[..., i, None].to(dtype)) * of.rstd[..., i, None].to(dtype)
        inside = inside * named["lora_weight"] + named["lora_bias"]
        terms += [named["q"] * inside] if form.lora else []
        terms += [named["m"] * base * inside] if form.cross and base is not None else []
    share = of.share[..., i, None].to(dtype)
    if form.competition:
        terms += [named["share"] * share, named["cosine"] * of.cosine[..., i, None].to(dtype)]
    logits = vectors.bias
    if terms:
        features = sum(terms[1:], terms[0])
        logits = logits + (features if vectors.scale is None else features * vectors.scale)
    gate = named["v"] * torch.sigmoid(logits)
    if not form.solo:
        return gate.expand_as(own)
    return 1 + share / (share + FADE) * (2 * gate - 1)


def update(
    form: Form,
    vectors: Vectors,
    y: Tensor,
    hidden: Tensor,
    stack: Stack,
    free: Tensor,
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
        free: f, how far each adapter is gated, 0 for not at all; broadcasts to (…, tokens, adapters).
        known: From :func:`numbers`; computed where left out.
        moments: See :func:`normalized`.
        watch: Told the number of each adapter, its output and what that is multiplied with.
    """
    known = known or numbers(hidden, stack.grams, free)
    named, base = vectors.named, None
    if form.base or form.cross:
        base = normalized(y, moments) * named["base_weight"] + named["base_bias"]
    total: Tensor | None = None
    for i, (first, end) in enumerate(stack.spans):
        if first == end:
            continue
        own = hidden[..., first:end] @ stack.up[..., first:end].mT
        gate = factor(form, vectors, base, own, known, i)
        share = free[..., i, None].to(own.dtype)
        held = 1 + share * (gate - 1)
        if stack.mix is not None and i == len(stack.spans) - 1:
            # The global adapter is extra: nothing where the gate is off, or where ours begins.
            held = share * (gate - 1) if form.solo else share * gate
        total = own * held if total is None else total + own * held
        if watch is not None:
            watch(i, own, held)
    return torch.zeros_like(y) if total is None else total
