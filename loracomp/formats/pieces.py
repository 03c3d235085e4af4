"""Splitting the update of a fused module into its layers' updates, and joining them, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from math import inf, log2

import torch
from torch import Tensor

from loracomp.formats.native import Module, Piece
from loracomp.lowrank import LowRank

# Entries this far below the peak still have all digits.
_DIGITS = 2.0**8


def split(update: LowRank, module: Module) -> dict[str, LowRank]:
    """Updates of the layers of a module, by path.

    Rows of ``up`` go to the layers they belong to. Where the file is the block-diagonal sum that a
    joining writer makes (each layer has rank columns of its own), every layer gets its own columns
    alone, so that the ranks are those it was trained with.
    """
    if len(module.pieces) == 1:
        return {module.pieces[0].path: _rows(update, module.pieces[0])}
    blocks = _own_columns(update.up, module)
    return {
        piece.path: _columns(_rows(update, piece), columns)
        for piece, columns in zip(module.pieces, blocks, strict=True)
        if columns is None or columns.stop > columns.start
    }


def join(layers: Mapping[str, LowRank], module: Module) -> LowRank:
    """The update of a fused module from those of its layers; absent layers stay unchanged.

    Layers that share one down matrix keep sharing it; others are put side by side, rank by rank.
    """
    parts = [layers.get(piece.path) for piece in module.pieces]
    present = [part for part in parts if part is not None]
    shared = len(present) == len(parts) and all(
        part.scale == present[0].scale and torch.equal(part.down, present[0].down) for part in present
    )
    if not shared:
        present = _one_scale(present)
    rank = present[0].rank if shared else sum(part.rank for part in present)
    dtype = reduce(torch.promote_types, (part.up.dtype for part in present))
    up = torch.zeros(module.shape[0], rank, *present[0].up.shape[2:], dtype=dtype)
    column, rest = 0, iter(present)
    for piece, part in zip(module.pieces, parts, strict=True):
        if part is None:
            continue
        kept = next(rest)
        row = 0
        for start, stop in piece.rows:
            up[start:stop, column : column + kept.rank] = kept.up[row : row + stop - start]
            row += stop - start
        column += 0 if shared else kept.rank
    down = present[0].down if shared else torch.cat([part.down for part in present])
    first = present[0]
    return LowRank(down, up, None if first.alpha is None else first.scale * rank)


def _one_scale(parts: list[LowRank]) -> list[LowRank]:
    """The same updates with one scale: as they are if they agree, else with the scale in ``up``."""
    if len({part.scale for part in parts}) == 1:
        return parts
    return [fold(part) for part in parts]


def fold(layer: LowRank) -> LowRank:
    """The update with its scale multiplied into a factor (exact for powers of two, else one rounding)."""
    plain = LowRank(layer.down, layer.up)
    return plain if layer.alpha is None else times(plain, layer.scale)


def times(layer: LowRank, number: float) -> LowRank:
    """An update times a number, in its factors, alpha untouched: exact for powers of two, else one rounding.

    What shrinks is the factor of larger entries and what grows that of smaller ones. Where half precision
    would still lose digits or overflow, a power of two moves from one factor to the other first.
    """
    if number == 1.0:
        return layer
    up, down = (float(factor.abs().amax()) if factor.numel() else 0.0 for factor in (layer.up, layer.down))
    if (up >= down) == (abs(number) < 1):
        share, rest = number, 1.0
    else:
        share, rest = 1.0, number
    movable = number != 0 and 0 < up < inf and 0 < down < inf
    if movable and not (_keeps(up * share, layer.up.dtype) and _keeps(down * rest, layer.down.dtype)):
        share = 2.0 ** round(log2(abs(number * down / up)) / 2)
        rest = number / share
    return replace(layer, up=_scaled(layer.up, share), down=_scaled(layer.down, rest))


def _keeps(peak: float, dtype: torch.dtype) -> bool:
    """Whether entries up to ``peak`` fit into ``dtype`` with all their digits."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal * _DIGITS <= abs(peak) <= limits.max


def _scaled(factor: Tensor, number: float) -> Tensor:
    return factor if number == 1.0 else (factor.to(torch.float64) * number).to(factor.dtype)


def _rows(update: LowRank, piece: Piece) -> LowRank:
    if piece.rows == ((0, update.up.shape[0]),):
        return update
    up = torch.cat([update.up[start:stop] for start, stop in piece.rows])
    return LowRank(update.down, up, update.alpha)


def _columns(update: LowRank, columns: slice | None) -> LowRank:
    if columns is None:
        return update
    down, up = update.down[columns].contiguous(), update.up[:, columns].contiguous()
    alpha = None if update.alpha is None else update.scale * down.shape[0]
    return LowRank(down, up, alpha)


def _own_columns(up: Tensor, module: Module) -> list[slice | None]:
    """The rank columns of each layer, or None for all where layers share columns."""
    used = torch.stack([_rows_used(up, piece) for piece in module.pieces])
    shared: list[slice | None] = [None] * len(module.pieces)
    rank, count = up.shape[1], len(module.pieces)
    if bool((used.sum(0) > 1).any()):
        return shared
    if rank % count == 0:
        equal = [slice(i * rank // count, (i + 1) * rank // count) for i in range(count)]
        if all(not bool(used[i, : s.start].any() or used[i, s.stop :].any()) for i, s in enumerate(equal)):
            return list(equal)
    return _contiguous(used) or shared


def _contiguous(used: Tensor) -> list[slice | None] | None:
    """Column ranges in the order of the layers, cut where the next layer's first used column is."""
    cuts: list[slice | None] = []
    start, rank = 0, used.shape[1]
    firsts = [int(row.int().argmax()) if bool(row.any()) else None for row in used]
    for index, first in enumerate(firsts):
        if first is None:
            cuts.append(slice(start, start))
            continue
        later = [f for f in firsts[index + 1 :] if f is not None]
        stop = min(later, default=rank)
        if first < start or bool(used[index, stop:].any()):
            return None
        cuts.append(slice(start, stop))
        start = stop
    return cuts if start == rank else None


def _rows_used(up: Tensor, piece: Piece) -> Tensor:
    """Which rank columns (r,) are not zero throughout a layer's rows."""
    flat = up.flatten(1)
    used = torch.zeros(flat.shape[1], dtype=torch.bool)
    for start, stop in piece.rows:
        used |= (flat[start:stop] != 0).any(0)
    return used
