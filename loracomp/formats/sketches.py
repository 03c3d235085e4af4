"""Fingerprints of ΔW that do not depend on dialect, gauge, rank padding or dtype.

A layer's sketch is uᵀ ΔW v for four pairs of fixed random sign vectors (E[(uᵀ ΔW v)²] = ‖ΔW‖²). Equal
updates have equal sketches up to rounding, whatever factors they are stored in, so two files are the
same adapter when all their sketches agree within the error of half-precision storage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from zlib import crc32

import torch
from torch import Tensor

from loracomp.lowrank import LowRank

PROBES = 4
SAME = 0.02
_POOL = 1 << 16
_SPREAD = 4099
_HASH_NUMBERS = 12
_GRID = 0.1

Signature = Mapping[str, tuple[float, ...]]


@cache
def _signs(columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(20240229)
    return torch.randint(0, 2, (_POOL, columns), generator=generator).float() * 2 - 1


def probes(path: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Sign vectors u (rows, 4) and v (columns, 4) of the layer at ``path``."""
    seed, pool = crc32(path.encode()), _signs(PROBES)
    left = torch.arange(rows).add_(seed % _SPREAD).remainder_(_POOL)
    right = torch.arange(columns).mul_(3).add_(seed // _SPREAD % _SPREAD + _POOL // 2).remainder_(_POOL)
    return pool[left], pool[right]


def sketch(path: str, layer: LowRank) -> tuple[float, ...]:
    """The sketch of a low-rank update."""
    return sketch_factors(path, layer.up.flatten(1).float(), layer.down.flatten(1).float(), layer.scale)


def sketch_factors(path: str, up: Tensor, down: Tensor, scale: float) -> tuple[float, ...]:
    """The sketch of scale · up · down, from float32 matrices."""
    left, right = probes(path, up.shape[0], down.shape[1])
    values = ((left.T @ up) * (down @ right).T).sum(1, dtype=torch.float64) * scale
    return tuple(values.tolist())


def sketch_rows(left: Tensor, block: Tensor, right: Tensor) -> Tensor:
    """The share of a block of dense rows in the sketch: u (rows, 4), block, v (columns, 4)."""
    return (left * (block @ right)).sum(0, dtype=torch.float64)


def same(first: Signature, second: Signature) -> bool:
    """Whether two adapters are the same update up to rounding; absent layers count as zero."""
    return _distance(first, second) <= SAME**2 * _energy(first)


def _energy(signature: Signature) -> float:
    return sum(value * value for values in signature.values() for value in values)


def _distance(first: Signature, second: Signature) -> float:
    zero = (0.0,) * PROBES
    total = 0.0
    for path in first.keys() | second.keys():
        pair = zip(first.get(path, zero), second.get(path, zero), strict=True)
        total += sum((a - b) ** 2 for a, b in pair)
    return total


def canonical_hash(signature: Signature) -> str:
    """16 hexadecimal digits that equal adapters share: the size of ΔW and twelve projections, rounded.

    Rounding to a grid flips a digit now and then between a float32 file and its half-precision copy, so
    duplicates are decided by :func:`same`; the hash is the name to note down.
    """
    size = _energy(signature) ** 0.5
    if size == 0:
        return hashlib.sha256(b"zero").hexdigest()[:16]
    sums = torch.zeros(_HASH_NUMBERS, dtype=torch.float64)
    for path, values in signature.items():
        start = crc32(path.encode()) % (_POOL - PROBES)
        signs = _signs(_HASH_NUMBERS)[start : start + PROBES].double()
        sums += signs.T @ torch.tensor(values, dtype=torch.float64)
    numbers = [round(float(value) / size / _GRID) for value in sums]
    exponent = round(float(torch.tensor(size).log2()) * 4)
    return hashlib.sha256(repr((exponent, numbers)).encode()).hexdigest()[:16]
