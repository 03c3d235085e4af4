"""Layers reduced to small matrices from which all training-free features follow.

For ΔW = scale · up · down with fixed random signs P (rows) and Q (columns), the reduction of a layer is

    upᵀ up (r, r),  down downᵀ (r, r),  P up (k, r),  down Qᵀ (r, k)

so that P ΔW Qᵀ, P ΔW ΔWᵀ Pᵀ, Q ΔWᵀ ΔW Qᵀ and the singular values are products of r × r matrices. None
of them changes with the gauge (up M, M⁻¹ down). Signs depend on the width of a side alone: layers that
read the same space (all keys and values read the text) are seen through the same directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from loracomp.lowrank import LowRank

PROBES = 16
VERSION = 1
_CHUNK = 1 << 20
_JOINED = 256
# Where the factors are this much larger than their product, half their digits cancel.
_SKEW = 1e3


@dataclass(frozen=True, eq=False)
class Reduced:
    """Layers of one rank, reduced; ``n`` layers, rank ``r``, ``k`` probes.

    Attributes:
        places: What the layers came with, one each.
        scale: Shape (n,), the factor in front of the product.
        up: upᵀ up, shape (n, r, r), float64.
        down: down downᵀ, shape (n, r, r), float64.
        left: P up, shape (n, k, r), float32, or float64 where the gauge needs it.
        right: down Qᵀ, shape (n, r, k), as ``left``.
    """

    places: tuple[int, ...]
    scale: Tensor
    up: Tensor
    down: Tensor
    left: Tensor
    right: Tensor


@cache
def signs(width: int, side: str) -> Tensor:
    """Random signs over √16 for one side (``out`` or ``in``) of a layer, shape (16, width), float32.

    Bit for bit the same everywhere: they come from a counter-based generator of the CPU.
    """
    seed = VERSION * 1_000_003 + width * 2 + (side == "out")
    source = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, 2, (PROBES, width), generator=source, dtype=torch.int8)
    return (draws.float() * 2 - 1) / PROBES**0.5


def reduce_layers(layers: Iterable[tuple[int, LowRank]], sketches: bool = True) -> Iterator[Reduced]:
    """Layers reduced in batches of equal shape; each batch holds a few MiB at most.

    Args:
        layers: Layers with a number each that comes out with them; rank 0 is passed over.
        sketches: Whether to project at all; left and right have no probes otherwise.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, LowRank]]] = {}
    for place, layer in layers:
        if not layer.rank:
            continue
        rows, columns = layer.up.shape[0], layer.down[0].numel()
        key = (rows, columns, layer.rank, layer.up.element_size(), layer.down.element_size())
        batch = waiting.setdefault(key, [])
        batch.append((place, layer))
        if len(batch) * (rows + columns) * layer.rank >= _CHUNK:
            yield _reduced(waiting.pop(key), sketches)
    for batch in waiting.values():
        yield _reduced(batch, sketches)


def merged(batches: Iterable[Reduced]) -> Iterator[Reduced]:
    """Batches joined by rank, so that what follows is done once for many shapes; 256 layers at most."""
    waiting: dict[int, list[Reduced]] = {}
    for batch in batches:
        rank = batch.up.shape[1]
        held = waiting.setdefault(rank, [])
        held.append(batch)
        if sum(len(part.places) for part in held) >= _JOINED:
            yield _joined(waiting.pop(rank))
    for held in waiting.values():
        yield _joined(held)


def _joined(batches: list[Reduced]) -> Reduced:
    if len(batches) == 1:
        return batches[0]
    wide = torch.float64 if any(part.left.dtype == torch.float64 for part in batches) else torch.float32
    return Reduced(
        tuple(place for part in batches for place in part.places),
        torch.cat([part.scale for part in batches]),
        torch.cat([part.up for part in batches]),
        torch.cat([part.down for part in batches]),
        torch.cat([part.left.to(wide) for part in batches]),
        torch.cat([part.right.to(wide) for part in batches]),
    )


def _reduced(batch: list[tuple[int, LowRank]], sketches: bool) -> Reduced:
    places = tuple(place for place, _ in batch)
    scale = torch.tensor([layer.scale for _, layer in batch], dtype=torch.float64)
    up, down = _stack([layer.up for _, layer in batch]), _stack([layer.down for _, layer in batch])
    return reduce_stack(places, scale, up, down, sketches)


def reduce_stack(
    places: tuple[int, ...], scale: Tensor, up: Tensor, down: Tensor, sketches: bool = True
) -> Reduced:
    """Layers of one shape reduced.

    Args:
        places: A number each that comes out with them.
        scale: Shape (n,), float64.
        up: Shape (n, rows, r), float32.
        down: Shape (n, r, columns), float32.
        sketches: As in :func:`reduce_layers`.
    """
    grams = _grams(up, down)
    if _skewed(*grams):
        up, down = up.double(), down.double()
        grams = _grams(up, down)
    if sketches:
        # One product instead of one for each layer, which takes four times as long.
        left = torch.tensordot(up, signs(up.shape[1], "out").to(up.dtype), ([1], [1])).mT
        right = (down.flatten(0, 1) @ signs(down.shape[2], "in").to(up.dtype).T).unflatten(0, down.shape[:2])
    else:
        left, right = up[:, :0], down[:, :, :0]
    return Reduced(places, scale, *grams, left, right)


def _stack(factors: list[Tensor]) -> Tensor:
    """Factors side by side in float32, trailing axes flattened; one layer costs no copy but its own."""
    if len(factors) == 1:
        return factors[0].flatten(1).unsqueeze(0).float()
    return torch.stack([factor.flatten(1) for factor in factors]).float()


def _grams(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    if len(up) == 1:
        return (up[0].T @ up[0])[None].double(), (down[0] @ down[0].T)[None].double()
    return (up.mT @ up).double(), (down @ down.mT).double()


def _skewed(up: Tensor, down: Tensor) -> bool:
    """Whether ‖up‖² ‖down‖² stands so far above ‖up · down‖² that single precision is too coarse."""
    apart = up.diagonal(dim1=1, dim2=2).sum(1) * down.diagonal(dim1=1, dim2=2).sum(1)
    together = (up * down.mT).sum((1, 2))
    return bool((apart > _SKEW * together.abs()).any())
