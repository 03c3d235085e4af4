"""Norm and sketch of each layer of a file's modules, without ever forming a dense update as a whole.

A factored layer leaves small Gram matrices behind, and those of many layers are summed up in a few
calls: one by one the calls would cost as much as the matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from loracomp.formats.matrices import Matrix, blocks
from loracomp.formats.native import Module
from loracomp.formats.pieces import split
from loracomp.formats.sketches import PROBES, probes, sketch_rows
from loracomp.lowrank import LowRank

Item = TypeVar("Item")
_KEPT_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Measured:
    """One layer's update in numbers.

    Attributes:
        path: Module path in the base.
        rank: Rank, or the bound that the algebra gives.
        scale: The factor alpha / rank; 1 where it is part of the values.
        norm: Frobenius norm of ΔW.
        sketch: See :mod:`loracomp.formats.sketches`.
    """

    path: str
    rank: int
    scale: float
    norm: float
    sketch: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Grams:
    """A factored layer, reduced: upᵀ up and down downᵀ, both (r, r), u up and v downᵀ, both (4, r)."""

    path: str
    rank: int
    scale: float
    parts: tuple[Tensor, Tensor, Tensor, Tensor]


def measure_all(
    updates: Iterable[tuple[Item, Module, LowRank | Matrix]],
) -> Iterator[tuple[Item, list[Measured]]]:
    """The layers of many modules, measured in float32, in order and with what each module came with.

    An update is done with when the next one is asked for, so it may live in memory that is used again.
    Norms that float32 cannot hold come out as zero, infinity or NaN; :func:`measure` has the range.
    """
    batch: list[tuple[Item, list[_Grams] | list[Measured]]] = []
    kept = 0
    for item, module, update in updates:
        reduced = _reduced(update, module, torch.float32)
        batch.append((item, reduced))
        kept += sum(2 * part.rank * (part.rank + PROBES) for part in reduced if isinstance(part, _Grams))
        if kept > _KEPT_NUMBERS:
            yield from _summed(batch)
            batch, kept = [], 0
    yield from _summed(batch)


def measure(update: LowRank | Matrix, module: Module) -> list[Measured]:
    """The layers of one module, measured in float64 where it is factored."""
    return next(_summed([(None, _reduced(update, module, torch.float64))]))[1]


def _reduced(update: LowRank | Matrix, module: Module, dtype: torch.dtype) -> list[_Grams] | list[Measured]:
    if isinstance(update, LowRank):
        return [_grams(path, layer, dtype) for path, layer in split(update, module).items()]
    return [_dense(piece.path, piece.rows, update) for piece in module.pieces]


def _grams(path: str, layer: LowRank, dtype: torch.dtype) -> _Grams:
    """The factors one after the other, so that each stays in the processor's caches."""
    up, down = layer.up.flatten(1), layer.down.flatten(1)
    left, right = probes(path, up.shape[0], down.shape[1])
    if not up.dtype == down.dtype == left.dtype == dtype:
        up, down, left, right = (values.to(dtype) for values in (up, down, left, right))
    # The few probes stand left in both products: the other order is five times slower.
    columns, first, turned = torch.mm(up.T, up), torch.mm(left, up), down.T
    rows, second = torch.mm(down, turned), torch.mm(right, turned)
    return _Grams(path, layer.rank, layer.scale, (columns, rows, first, second))


def _summed(batch: list[tuple[Item, list[_Grams] | list[Measured]]]) -> Iterator[tuple[Item, list[Measured]]]:
    """‖up · down‖² and the sketch of up · down of every layer, from stacks of layers of one rank."""
    ranks: dict[int, list[_Grams]] = {}
    for _, reduced in batch:
        for part in reduced:
            if isinstance(part, _Grams):
                ranks.setdefault(part.rank, []).append(part)
    done: dict[_Grams, Measured] = {}
    for layers in ranks.values():
        up, down, left, right = map(torch.stack, zip(*(layer.parts for layer in layers), strict=True))
        squares = up.mul_(down).sum((1, 2), dtype=torch.float64).tolist()
        sketches = left.mul_(right).sum(2, dtype=torch.float64).tolist()
        for layer, square, sketch in zip(layers, squares, sketches, strict=True):
            size = abs(layer.scale) * max(square, 0.0) ** 0.5
            scaled = tuple(value * layer.scale for value in sketch)
            done[layer] = Measured(layer.path, layer.rank, layer.scale, size, scaled)
    for item, reduced in batch:
        yield item, [done[part] if isinstance(part, _Grams) else part for part in reduced]


def _dense(path: str, rows: tuple[tuple[int, int], ...], update: Matrix) -> Measured:
    count, columns = sum(stop - start for start, stop in rows), update.size[1]
    left, right = probes(path, count, columns)
    square, total, done = 0.0, torch.zeros(PROBES, dtype=torch.float64), 0
    for start, stop in rows:
        for row, block in blocks(update, start, stop):
            place = done + row - start
            square += float(block.double().square().sum())
            total += sketch_rows(left[:, place : place + block.shape[0]], block, right)
        done += stop - start
    rank = min(update.rank_bound, count, columns)
    return Measured(path, rank, 1.0, square**0.5, tuple(total.tolist()))
