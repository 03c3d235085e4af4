"""What a merge kept and what it lost, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import frexp, ldexp
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loracomp.fusion.offline.parents import Family, Site
from loracomp.lowrank import LowRank, distance, inner_products

_CANCELS = 1e-10


@dataclass(frozen=True)
class LayerReport:
    """One merged layer M against the exact sum S = Σ wᵢ ΔWᵢ.

    Attributes:
        path: Module path.
        rank: Rank of M.
        norm: ‖S‖, Frobenius.
        size: ‖M‖ / ‖S‖; 1 where both are zero.
        error: ‖M - S‖ / ‖S‖, rounding of the stored factors included; 0 where both are zero.
    """

    path: str
    rank: int
    norm: float
    size: float
    error: float


@dataclass(frozen=True)
class Report:
    """A merge in numbers.

    Attributes:
        method: Name of the method.
        base: The base.
        adapters: The parents' names.
        weights: Their weights.
        layers: The layers, by path.
        size: ‖M‖ / ‖S‖ over all layers together.
        error: ‖M - S‖ / ‖S‖ over all layers together.
        kept: What is left of each parent: the kᵢ for which Σ kᵢ wᵢ ΔWᵢ is nearest to M over all layers (where
            several are, those nearest to 1); None for parents that are zero or have weight 0. 1 for the exact
            sum; an adapter near 0 has vanished.
        naive_error: For averages: the relative error of averaging factors instead, (Σ pᵢ Bᵢ)(Σ pᵢ Aᵢ) with
            smaller ranks padded by zeros; else None.
    """

    method: str
    base: str
    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    layers: tuple[LayerReport, ...]
    size: float
    error: float
    kept: tuple[float | None, ...]
    naive_error: float | None

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max((layer.rank for layer in self.layers), default=0)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self) | {"rank": self.rank}


@dataclass(frozen=True, eq=False)
class _Weighed:
    """One layer: inner products of the parents and the merged update, and what was missed, squared."""

    row: LayerReport
    table: Tensor
    missed: float
    naive: float


class Scale:
    """Weighs merged layers against the exact sums, one by one.

    Args:
        family: The parents.
        naive: Whether to find the error of averaging factors beside it.
        stacks: Whether merged layers are the parents' factors side by side, which is quicker to weigh.
    """

    def __init__(self, family: Family, *, naive: bool = False, stacks: bool = False) -> None:
        self._family, self._naive, self._stacks = family, naive, stacks
        # By path, since the sums below must not depend on the order in which layers come.
        self._weighed: dict[str, _Weighed] = {}

    def add(self, site: Site, layer: LowRank) -> None:
        """Takes in one layer and its merged update."""
        weights = torch.tensor([*site.weights, 0.0], dtype=torch.float64)
        if self._stacks:
            table, missed = _stacked(site, layer, weights)
        else:
            table = inner_products([*site.updates, layer])
            difference = weights - torch.eye(len(weights), dtype=torch.float64)[-1]
            missed = _root(difference @ table @ difference)
            if missed <= _CANCELS**0.5 * float(table.diagonal().sum()) ** 0.5:
                # Gram matrices cancel here to their last digits.
                missed = distance(layer, _sum(site))
        norm, size = _root(weights @ table @ weights), _root(table[-1, -1])
        row = LayerReport(site.path, layer.rank, norm, _ratio(size, norm, 1.0), _ratio(missed, norm, 0.0))
        naive = distance(naive_average(site), _sum(site)) ** 2 if self._naive else 0.0
        self._weighed[site.path] = _Weighed(row, table, missed**2, naive)

    def report(self, method: str) -> Report:
        """The whole merge."""
        weights = torch.tensor(self._family.weights, dtype=torch.float64)
        layers = [self._weighed[path] for path in sorted(self._weighed)]
        blank = torch.zeros(len(weights) + 1, len(weights) + 1, dtype=torch.float64)
        sums = torch.stack([blank, *(one.table for one in layers)]).sum(0)
        norm = sum(one.row.norm**2 for one in layers) ** 0.5
        missed, naive = sum(one.missed for one in layers) ** 0.5, sum(one.naive for one in layers) ** 0.5
        return Report(
            method=method,
            base=self._family.base,
            adapters=tuple(parent.name for parent in self._family.parents),
            weights=self._family.weights,
            layers=tuple(one.row for one in layers),
            size=_ratio(_root(sums[-1, -1]), norm, 1.0),
            error=_ratio(missed, norm, 0.0),
            kept=_kept(sums, weights),
            naive_error=_ratio(naive, norm, 0.0) if self._naive else None,
        )


def _kept(sums: Tensor, weights: Tensor) -> tuple[float | None, ...]:
    """See :class:`Report`, from the inner products of all layers together."""
    parents, merged = sums[:-1, :-1], sums[:-1, -1]
    # Unit columns, so that quiet adapters count as much as loud ones in what is singular.
    sizes = parents.diagonal().clamp(min=0).sqrt()
    unit = torch.where(sizes > 0, 1 / sizes, 0.0)
    gap = (merged - parents @ weights) * unit
    shift = torch.linalg.pinv(parents * unit * unit[:, None], rtol=1e-9, hermitian=True) @ gap * unit
    there = [bool(size > 0 and weight != 0) for size, weight in zip(sizes, weights, strict=True)]
    shares = 1 + shift / torch.where(weights == 0, 1.0, weights)
    return tuple(float(share) if on else None for share, on in zip(shares, there, strict=True))


def naive_average(site: Site) -> LowRank:
    """(Σ pᵢ Bᵢ)(Σ pᵢ Aᵢ): what averaging clients' factors gives, strength in B, ranks padded with zeros."""
    rank = site.largest
    up = torch.zeros(site.matrix[0], rank, dtype=torch.float64)
    down = torch.zeros(rank, site.matrix[1], dtype=torch.float64)
    for update, weight in zip(site.updates, site.weights, strict=True):
        left, right = update.matrices()
        up += weight * F.pad(left, (0, rank - update.rank))
        down += weight * F.pad(right, (0, 0, 0, rank - update.rank))
    return LowRank(down, up)


def _sum(site: Site) -> LowRank:
    """The exact sum as matrices, float64."""
    pairs = [part.matrices() for part in site.parts]
    return LowRank(torch.cat([d for _, d in pairs]), torch.cat([u for u, _ in pairs], dim=1))


def _stacked(site: Site, layer: LowRank, weights: Tensor) -> tuple[Tensor, float]:
    """Inner products of the updates and their stack, and ‖M - S‖ from what rounding did to each part.

    Rounding errors of different parents are independent, so their squares are added. Parents of weight 0
    have no part in the stack and count as zero.
    """
    ranks = [part.rank for part in site.parts]
    products, grams = _products(layer if layer.down.dtype.itemsize >= 4 else _sum(site), ranks)
    inverse = torch.where(weights[:-1] == 0, 0.0, 1 / weights[:-1])
    parents = products * inverse * inverse[:, None]
    grown = torch.cat([torch.eye(len(parents), dtype=torch.float64), weights[None, :-1]])
    table = grown @ parents @ grown.T
    ups, downs = layer.up.flatten(1).split(ranks, 1), layer.down.flatten(1).split(ranks)
    squares = 0.0
    for part, up, down, gram in zip(site.parts, ups, downs, grams, strict=True):
        lossless = torch.promote_types(part.down.dtype, down.dtype) == down.dtype
        if not lossless or not torch.equal(down, part.down.flatten(1).to(down.dtype)):
            return table, distance(layer, _sum(site))
        gap = _gap(part, up)
        squares += max(float(((gap.T @ gap) * gram).sum()), 0.0)
    return table, squares**0.5


def _products(stack: LowRank, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Inner products of the parts of a stack (n, n), float64, and the Gram matrix of each part's down."""
    up, down = stack.up.flatten(1).float(), stack.down.flatten(1).float()
    owners = torch.eye(len(ranks), dtype=torch.float64).repeat_interleave(torch.tensor(ranks), dim=0)
    table, grams, stop = torch.zeros(len(ranks), len(ranks), dtype=torch.float64), [], 0
    for index, rank in enumerate(ranks):
        start, stop = stop, stop + rank
        rows = down[:stop] @ down[start:stop].T
        grams.append(rows[start:])
        both = (up[:, :stop].T @ up[:, start:stop]).mul_(rows).sum(1, dtype=torch.float64)
        table[index] = both @ owners[:stop]
    return table + table.tril(-1).T, grams


def _gap(part: LowRank, up: Tensor) -> Tensor:
    """What rounding did to a part's up in a stack: (rows, rank), right to its own last digits."""
    given = part.up.flatten(1)
    if given.dtype.itemsize > 2 or up.dtype is not torch.float32:
        return (given.double() * part.scale - up).float()
    # Twelve digits of the strength times those of half precision are exact in float32, and what is
    # left of the strength is so small that its own rounding does not count.
    mantissa, exponent = frexp(part.scale)
    high = ldexp(round(mantissa * 4096), exponent - 12)
    wide = given.float()
    gap = torch.sub(wide * high, up)
    return gap if high == part.scale else gap.add_(wide, alpha=part.scale - high)


def _root(value: Tensor) -> float:
    return max(float(value), 0.0) ** 0.5


def _ratio(part: float, whole: float, empty: float) -> float:
    if whole > 0:
        return part / whole
    return empty if part == 0 else float("inf")
