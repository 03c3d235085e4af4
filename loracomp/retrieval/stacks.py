"""Small files of one layout side by side, so that a layer of a few kilobytes costs no call of its own.

An adapter for a small base has a hundred layers, and a folder of them repeats a few layouts
(:mod:`loracomp.formats.tables`). Where the factors lie is found out once for a layout; then equal layers
of several files are gathered and reduced together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from loracomp.formats.matching import Found, Match
from loracomp.formats.scales import stated
from loracomp.formats.source import Source
from loracomp.formats.tables import MOST, Recent
from loracomp.retrieval.bank import ProbeBank
from loracomp.retrieval.features import Columns, Features
from loracomp.retrieval.reduction import Reduced, merged, reduce_stack
from loracomp.retrieval.sites import SiteTable
from loracomp.retrieval.textprobes import text_blocks

SMALL = 4 << 20
_FRACTIONS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class Group:
    """Layers of one shape; ``up`` and ``down`` say where the values of each begin and end."""

    places: tuple[int, ...]
    rows: int
    rank: int
    columns: int
    up: tuple[slice, ...]
    down: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Where a layout keeps its factors.

    Attributes:
        dtype: Type of all factors.
        groups: Layers by shape.
        items: The file's modules, group by group.
        alphas: Positions of their alphas; None where the file has none.
        alpha_dtype: Type of the alphas.
    """

    dtype: torch.dtype
    groups: tuple[Group, ...]
    items: tuple[Found, ...]
    alphas: Tensor | None
    alpha_dtype: torch.dtype

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(group.rank for group in self.groups)

    @property
    def places(self) -> tuple[int, ...]:
        """The layers, in the order of :attr:`items`."""
        return tuple(place for group in self.groups for place in group.places)


_KNOWN: Recent[tuple[Plan | None]] = Recent(MOST)


def plan_of(source: Source, matched: Match, table: SiteTable) -> Plan | None:
    """The plan of a small file of plain low-rank layers; None for any other, which is read layer by layer."""
    if source.header.size > SMALL:
        return None
    key = (source.header.layout, table.base, source.limits)
    known = _KNOWN.get(key)
    if known is None:
        known = (_planned(source, matched, table),)
        _KNOWN.put(key, known, len(source.header.table))
    return known[0]


def _planned(source: Source, matched: Match, table: SiteTable) -> Plan | None:
    shapes: dict[tuple[int, int, int], list[tuple[int, Found]]] = {}
    dtypes: set[torch.dtype] = set()
    for item in matched.found:
        piece, whole = item.module.pieces[0], ((0, item.module.shape[0]),)
        if item.algebra != "lora" or len(item.module.pieces) > 1 or piece.rows != whole:
            return None
        if not item.keys.keys() <= {"up", "down", "alpha"} or not 0 < item.rank <= source.limits.rank:
            return None
        up, down = (source.tensors[item.keys[role]] for role in ("up", "down"))
        if up.shape[1] != item.rank or down.shape[0] != item.rank or prod(up.shape[2:]) != 1:
            return None
        dtypes |= {up.dtype, down.dtype}
        shape = (up.shape[0], item.rank, prod(down.shape[1:]))
        shapes.setdefault(shape, []).append((table.index[piece.path], item))
    items = tuple(item for layers in shapes.values() for _, item in layers)
    places = {place for layers in shapes.values() for place, _ in layers}
    alphas = [source.tensors[item.keys["alpha"]] for item in items if "alpha" in item.keys]
    kinds = {info.dtype for info in alphas}
    if len(places) < len(items) or len(dtypes) != 1 or len(kinds) > 1 or len(alphas) not in (0, len(items)):
        return None
    dtype = dtypes.pop()
    begin = source.header.data_begin
    if (
        dtype not in _FRACTIONS
        or not kinds <= set(_FRACTIONS)
        or any(prod(info.shape) != 1 for info in alphas)
    ):
        return None
    infos = [source.tensors[item.keys[role]] for item in items for role in ("up", "down")]
    if any((info.begin - begin) % info.dtype.itemsize for info in (*infos, *alphas)):
        return None
    groups = tuple(_group(source, shape, layers) for shape, layers in shapes.items())
    starts = [(info.begin - begin) // info.dtype.itemsize for info in alphas]
    return Plan(
        dtype, groups, items, torch.tensor(starts) if starts else None, kinds.pop() if kinds else dtype
    )


def _group(source: Source, shape: tuple[int, int, int], layers: list[tuple[int, Found]]) -> Group:
    begin = source.header.data_begin
    infos = [[source.tensors[item.keys[role]] for _, item in layers] for role in ("up", "down")]
    up, down = (
        tuple(
            slice((info.begin - begin) // info.dtype.itemsize, (info.end - begin) // info.dtype.itemsize)
            for info in part
        )
        for part in infos
    )
    return Group(tuple(place for place, _ in layers), *shape, up, down)


@dataclass(frozen=True, eq=False)
class Held:
    """A small file in memory.

    Attributes:
        values: All tensor bytes, uint8.
        scales: What each layer's product is multiplied with, float64, in the order of :attr:`Plan.items`.
        identity: SHA-256 over the tensor bytes, hexadecimal.
    """

    values: Tensor
    scales: Tensor
    identity: str


def hold(source: Source, plan: Plan) -> Held:
    """Reads a file; raises FormatError where it became shorter meanwhile."""
    values = source.content()
    ranks = torch.tensor([item.rank for item in plan.items], dtype=torch.float64)
    if plan.alphas is None:
        says = stated(source.metadata, source.path)
        said = [says.alpha(item.module.pieces[0].path, item.rank) for item in plan.items]
        alphas = torch.tensor(
            [item.rank if alpha is None else alpha for item, alpha in zip(plan.items, said, strict=True)],
            dtype=torch.float64,
        )
    else:
        alphas = _as(values, plan.alpha_dtype)[plan.alphas].double()
    return Held(values, alphas / ranks, hashlib.sha256(values.numpy().data).hexdigest())


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    size = dtype.itemsize
    return values[: len(values) // size * size].view(dtype)


def stacked_features(
    plan: Plan, files: Sequence[Held], table: SiteTable, bank: ProbeBank | None
) -> list[Features]:
    """The features of files of one layout; the same numbers as one by one, up to rounding.

    Raises:
        FloatingPointError: One of them holds values that are not finite, or whose products are not.
    """
    scales = torch.stack([file.scales for file in files])
    if not bool(scales.isfinite().all()):
        raise FloatingPointError("alphas that are not finite")
    columns = Columns(table, bank, len(files))
    heard: dict[int, tuple[Tensor, Tensor]] = {}
    for reduced in merged(_reduced(plan, files, scales, len(table), bank, heard)):
        columns.add(reduced)
    texts = text_blocks(heard, bank) if bank else []
    return columns.features(texts or [None] * len(files))


def _reduced(
    plan: Plan,
    files: Sequence[Held],
    scales: Tensor,
    sites: int,
    bank: ProbeBank | None,
    heard: dict[int, tuple[Tensor, Tensor]],
) -> Iterator[Reduced]:
    """Groups reduced; the factors of layers that read the text are put into ``heard``."""
    values = torch.stack([_as(file.values, plan.dtype) for file in files]).float()
    done = 0
    for group in plan.groups:
        count = len(group.places)
        scale = scales[:, done : done + count]
        done += count
        up = torch.cat([values[:, part] for part in group.up], 1)
        down = torch.cat([values[:, part] for part in group.down], 1)
        up = up.view(len(files), count, group.rows, group.rank)
        down = down.view(len(files), count, group.rank, group.columns)
        for at, place in enumerate(group.places):
            if bank and place in bank.weights:
                heard[place] = up[:, at] * scale[:, at, None, None].float(), down[:, at]
        places = tuple(file * sites + place for file in range(len(files)) for place in group.places)
        yield reduce_stack(places, scale.flatten(), up.flatten(0, 1), down.flatten(0, 1))
