"""Norm and sketch of each layer of one module, without ever forming a dense update as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loracomp.formats.matrices import Matrix, blocks
from loracomp.formats.native import Module
from loracomp.formats.pieces import split
from loracomp.formats.sketches import PROBES, probes, sketch_rows
from loracomp.lowrank import LowRank


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


def measure(update: LowRank | Matrix, module: Module) -> list[Measured]:
    """The layers of a module, measured."""
    if isinstance(update, LowRank):
        return [_factored(path, layer) for path, layer in split(update, module).items()]
    return [_dense(piece.path, piece.rows, update) for piece in module.pieces]


def _factored(path: str, layer: LowRank) -> Measured:
    square, sketch = _grams(path, layer, torch.float32)
    if not 0 < square < float("inf"):
        # Zero or beyond float32: entries below 1e-10 or above 1e8 need the wider range.
        square, sketch = _grams(path, layer, torch.float64)
    size = abs(layer.scale) * max(square, 0.0) ** 0.5
    return Measured(path, layer.rank, layer.scale, size, tuple(v * layer.scale for v in sketch))


def _grams(path: str, layer: LowRank, dtype: torch.dtype) -> tuple[float, list[float]]:
    """‖up · down‖² and the sketch of up · down.

    One product per factor: the probes stand beside the factor in one buffer, so the r × r Gram matrix
    and the factor's products with the probes come out together.
    """
    up, down = layer.up.flatten(1), layer.down.flatten(1)
    rank = layer.rank
    left, right = probes(path, up.shape[0], down.shape[1])
    beside = torch.empty(up.shape[0], rank + PROBES, dtype=dtype)
    beside[:, :rank], beside[:, rank:] = up, left
    below = torch.empty(rank + PROBES, down.shape[1], dtype=dtype)
    below[:rank], below[rank:] = down, right.T
    first, second = beside[:, :rank].T @ beside, below[:rank] @ below.T
    products = (first * second).sum(0, dtype=torch.float64).tolist()
    return sum(products[:rank]), products[rank:]


def _dense(path: str, rows: tuple[tuple[int, int], ...], update: Matrix) -> Measured:
    count, columns = sum(stop - start for start, stop in rows), update.size[1]
    left, right = probes(path, count, columns)
    square, total, done = 0.0, torch.zeros(PROBES, dtype=torch.float64), 0
    for start, stop in rows:
        for row, block in blocks(update, start, stop):
            place = done + row - start
            square += float(block.double().square().sum())
            total += sketch_rows(left[place : place + block.shape[0]], block, right)
        done += stop - start
    rank = min(update.rank_bound, count, columns)
    return Measured(path, rank, 1.0, square**0.5, tuple(total.tolist()))
