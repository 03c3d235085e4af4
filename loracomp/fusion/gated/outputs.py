"""All adapters of a layer side by side, and what is known of their outputs without forming any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loracomp.fusion.gated.form import Form
from loracomp.fusion.gated.summary import directions

EPSILON = 1e-5
"""Of both layer norms, as published."""
FADE = 0.05
"""δ: the share of others' energy at which the gate has half its say."""
_TINY = 1e-12

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
