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
    """‖up · down‖² and the sketch of up · down, from r × r Gram matrices and 4 × r projections."""
    up, down = layer.up.flatten(1).to(dtype), layer.down.flatten(1).to(dtype)
    left, right = probes(path, up.shape[0], down.shape[1])
    square = (up.T @ up).mul_(down @ down.T).sum(dtype=torch.float64)
    # The few probes stand left in both products: the other order is five times slower.
    sketch = (left.to(dtype) @ up).mul_(right.to(dtype) @ down.T).sum(1, dtype=torch.float64)
    return float(square), sketch.tolist()


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
