"""Attacks on LoRA files: an adapter and a level to an adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank, canonical, concatenate, singular_values, truncate, zero
from loracomp.registry import Registry

Change = Callable[[Adapter, float], Adapter]
QUANTA: tuple[str, ...] = ("bf16", "int8", "fp8", "int4")


@dataclass(frozen=True)
class WeightAttack:
    """One kind of attack.

    Attributes:
        change: Adapter and level to adapter.
        levels: The grid.
        unit: What a level is.
    """

    change: Change
    levels: tuple[float, ...]
    unit: str

    def __call__(self, adapter: Adapter, level: float) -> Adapter:
        """The attacked adapter."""
        return self.change(adapter, level)


WEIGHT_ATTACKS: Registry[WeightAttack] = Registry("weight attack", group="loracomp.weight_attacks")


def weight_attack(
    name: str, levels: tuple[float, ...], unit: str, summary: str
) -> Callable[[Change], Change]:
    """Decorator that files an attack."""

    def add(change: Change) -> Change:
        WEIGHT_ATTACKS.register(name, summary=summary)(WeightAttack(change, levels, unit))
        return change

    return add


@weight_attack("strength", (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, -1.0), "weight", "the adapter at another strength")
def strength(adapter: Adapter, level: float) -> Adapter:
    """-1 subtracts it."""
    return adapter.scaled(level)


@weight_attack("rank", (1.0, 0.5, 0.25, 0.125, 0.0625), "share of r", "the best approximation of lower rank")
def rank(adapter: Adapter, level: float) -> Adapter:
    """Singular values beyond a share of the ranks are dropped."""
    return adapter.map(lambda layer: truncate(layer, max(1, round(level * layer.rank))))


@weight_attack("energy", (0.99, 0.95, 0.9), "share", "the lowest rank that keeps a share of the energy")
def energy(adapter: Adapter, level: float) -> Adapter:
    """Per layer."""

    def cut(layer: LowRank) -> LowRank:
        squares = singular_values(layer).square()
        kept = int((squares.cumsum(0) < level * squares.sum()).sum()) + 1
        return truncate(layer, min(kept, layer.rank))

    return adapter.map(cut)


@weight_attack("prune", (0.1, 0.3, 0.5, 0.7, 0.9), "share", "the smallest values of the factors made zero")
def prune(adapter: Adapter, level: float) -> Adapter:
    """In the canonical gauge, so that it does not depend on how the factors happen to be written."""

    def cut(layer: LowRank) -> LowRank:
        full = canonical(layer)
        return LowRank(_pruned(full.down, level), _pruned(full.up, level))

    return adapter.map(cut)


def _pruned(factor: Tensor, share: float) -> Tensor:
    sizes = factor.abs().flatten()
    count = int(share * len(sizes))
    return factor if not count else factor * (factor.abs() > sizes.kthvalue(count).values)


@weight_attack("quantize", (0, 1, 2, 3), "bf16, int8, fp8, int4", "fewer bits per value, scales per rank")
def quantize(adapter: Adapter, level: float) -> Adapter:
    """Levels are places in :data:`QUANTA`."""
    kind = QUANTA[int(level)]

    def cut(layer: LowRank) -> LowRank:
        # Rows of down and columns of up are ranks: each has its own scale.
        up = _quantized(layer.up.transpose(0, 1), kind).transpose(0, 1).contiguous()
        return LowRank(_quantized(layer.down, kind), up, layer.alpha)

    return adapter.map(cut)


def _quantized(factor: Tensor, kind: str) -> Tensor:
    values = factor.float()
    if kind == "bf16":
        return values.bfloat16().to(factor.dtype)
    axes = tuple(range(1, values.ndim))
    top = values.abs().amax(axes, keepdim=True).clamp_min(1e-12)
    if kind == "fp8":
        return ((values / top * 448).to(torch.float8_e4m3fn).float() / 448 * top).to(factor.dtype)
    steps = 127 if kind == "int8" else 7
    return ((values / top * steps).round() / steps * top).to(factor.dtype)


@weight_attack("noise", (0.01, 0.05, 0.1, 0.2), "relative deviation", "noise on every value of the factors")
def noise(adapter: Adapter, level: float) -> Adapter:
    """Relative to each factor's own deviation."""
    source = torch.Generator().manual_seed(round(level * 1000))

    def shaken(factor: Tensor) -> Tensor:
        drawn = torch.randn(factor.shape, generator=source).to(factor)
        return factor + level * factor.float().std().to(factor) * drawn

    return adapter.map(lambda layer: LowRank(shaken(layer.down), shaken(layer.up), layer.alpha))


BLOCKS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("attention", lambda path: "attn" in path),
    ("convolutions", lambda path: "resnets" in path),
    ("up blocks", lambda path: "up_blocks" in path),
)


@weight_attack("drop", (0, 1, 2), "attention, convolutions, up blocks", "a kind of layer left out")
def drop(adapter: Adapter, level: float) -> Adapter:
    """Levels are places in :data:`BLOCKS`."""
    gone = BLOCKS[int(level)][1]
    layers = {p: zero(layer.weight_shape) if gone(p) else layer for p, layer in adapter.layers.items()}
    return Adapter(layers, adapter.base, adapter.name, adapter.metadata)


def average(copies: Sequence[Adapter]) -> Adapter:
    """Collusion: the mean of several users' copies, exactly."""
    first, share = copies[0], 1 / len(copies)
    paths = sorted({path for copy in copies for path in copy.layers})
    layers = {
        path: concatenate([copy.layers[path].scaled(share) for copy in copies if path in copy.layers])
        for path in paths
    }
    return Adapter(layers, first.base, first.name)


def refused(
    adapter: Adapter, weights: Callable[[str], Tensor], dtype: torch.dtype, rank_of: int | None = None
) -> Adapter:
    """Folded into a base in ``dtype`` and taken out again by subtraction: what rounding leaves.

    Args:
        adapter: The adapter.
        weights: The base's weight by module path.
        dtype: Of the folded weights.
        rank_of: Rank to write the difference in; each layer's own where None.
    """

    def taken(path: str, layer: LowRank) -> LowRank:
        weight = weights(path).float()
        difference = (weight + layer.delta()).to(dtype).float() - weight.to(dtype).float()
        u, s, vt = torch.linalg.svd(difference.flatten(1), full_matrices=False)
        kept = rank_of or layer.rank
        root = s[:kept].sqrt()
        up = (u[:, :kept] * root).reshape(layer.weight_shape[0], kept, *layer.up.shape[2:])
        return LowRank((root[:, None] * vt[:kept]).reshape(kept, *layer.weight_shape[1:]), up)

    layers = {path: taken(path, layer) for path, layer in adapter.layers.items()}
    return Adapter(layers, adapter.base, adapter.name, adapter.metadata)
