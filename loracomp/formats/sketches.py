"""Fingerprints of ΔW that do not depend on dialect, gauge, rank padding or dtype.

A layer's sketch is uᵀ ΔW v for four pairs of fixed random sign vectors, so E[(uᵀ ΔW v)²] = ‖ΔW‖². An
adapter's fingerprint is the sum of its layers' sketches with random signs, 64 numbers, linear in ΔW:
absent layers count as zero, and ‖f₁ − f₂‖ estimates ‖ΔW₁ − ΔW₂‖ to about 12 %. Two files are the same
adapter when their fingerprints agree within the error of half-precision storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from math import isfinite
from zlib import crc32

import torch
from torch import Tensor

from loracomp.lowrank import LowRank

PROBES = 4
NUMBERS = 64
SAME = 0.02
_POOL = 1 << 16
_SPREAD = 4099
_HASH_NUMBERS = 12
_GRID = 0.1

Fingerprint = tuple[float, ...]


@cache
def _signs(columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(20240229)
    return torch.randint(0, 2, (_POOL, columns), generator=generator).float() * 2 - 1


@cache
def _pool() -> Tensor:
    """The pool of signs for probes, (PROBES, pool), in rows that do not lie a power of two apart.

    Rows at such distances share few lines of the caches, which makes the products half as fast.
    """
    wide = torch.zeros(PROBES, _POOL + 48)
    wide[:, :_POOL] = _signs(PROBES).T
    return wide[:, :_POOL]


def _pool_part(start: int, count: int) -> Tensor:
    """``count`` columns of the pool from ``start`` on, cyclically; a view where they are in one piece."""
    if start + count <= _POOL:
        return _pool().narrow(1, start, count)
    return _pool()[:, torch.arange(start, start + count).remainder_(_POOL)]


@lru_cache(maxsize=1 << 13)
def probes(path: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Sign vectors u (4, rows) and v (4, columns) of the layer at ``path``.

    They are kept, mostly as views, for the next file: its layers will be those of the same base.
    """
    seed = crc32(path.encode())
    return _pool_part(seed % _SPREAD, rows), _pool_part(_POOL // 2 + seed // _SPREAD % _SPREAD, columns)


def sketches(path: str, layers: Sequence[LowRank]) -> list[tuple[float, ...]]:
    """The four numbers uᵀ ΔW v of each of some updates of one layer, summed in float32 where that can."""
    left, right = probes(path, layers[0].up.shape[0], layers[0].down[0].numel())
    for dtype in (torch.float32, torch.float64):
        u, v = left.to(dtype), right.to(dtype)
        first = torch.cat([u @ layer.up.flatten(1).to(dtype) for layer in layers], dim=1)
        second = torch.cat([v @ layer.down.flatten(1).to(dtype).T for layer in layers], dim=1)
        products = (first.double() * second).split([layer.rank for layer in layers], 1)
        found = [tuple((part.sum(1) * x.scale).tolist()) for part, x in zip(products, layers, strict=True)]
        if all(isfinite(value) for values in found for value in values):
            break
    return found


def sketch_rows(left: Tensor, block: Tensor, right: Tensor) -> Tensor:
    """The share of a block of dense rows in the sketch: u (4, rows), block, v (4, columns)."""
    return (left * (right @ block.T)).sum(1, dtype=torch.float64)


def fingerprint(sketches: Iterable[tuple[str, Sequence[float]]]) -> Fingerprint:
    """The 64 numbers of an adapter from its layers' paths and sketches, in any order."""
    pairs = sorted((path, tuple(values)) for path, values in sketches)
    if not pairs:
        return (0.0,) * NUMBERS
    starts = torch.tensor([crc32(path.encode()) % (_POOL - PROBES) for path, _ in pairs])
    signs = _signs(NUMBERS)[starts[:, None] + torch.arange(PROBES)].double()
    values = torch.tensor([values for _, values in pairs], dtype=torch.float64)
    sums = torch.einsum("lpn,lp->n", signs, values) / NUMBERS**0.5
    return tuple(sums.tolist())


def size(print_: Fingerprint) -> float:
    """An estimate of ‖ΔW‖ over all layers, times two (four probes per layer)."""
    return sum(value * value for value in print_) ** 0.5


def same(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether two adapters are the same update up to the rounding of half precision."""
    missed = sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
    return missed <= SAME * max(size(first), size(second))


def canonical_hash(print_: Fingerprint) -> str:
    """16 hexadecimal digits that equal adapters share: the size of ΔW and twelve projections, rounded.

    Rounding to a grid flips a number now and then between a float32 file and its half-precision copy,
    so duplicates are decided by :func:`same`; the hash is the name to note down.
    """
    length = size(print_)
    if length == 0:
        return hashlib.sha256(b"zero").hexdigest()[:16]
    unit = NUMBERS**0.5 / length
    numbers = [round(value * unit / _GRID) for value in print_[:_HASH_NUMBERS]]
    exponent = round(float(torch.tensor(length, dtype=torch.float64).log2()) * 4)
    return hashlib.sha256(repr((exponent, numbers)).encode()).hexdigest()[:16]
