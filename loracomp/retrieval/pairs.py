"""Whether two adapters may be loaded together, told from their weights before anything is drawn.

Adapters that are harmless alone can be made so that they act together only. What such a pair cannot hide
is structure across the two: layers where one cancels the other, or where their sum grows a direction
that neither has. Unrelated adapters show neither; the marks here are statistics, not proofs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank, concatenate, inner, norm, singular_values

DUPLICATE = 0.95
CANCELLING = -0.5
GROWING = 1.7
CONFLICT = 0.3
_SHARE = 0.01
_SOME = 3


@dataclass(frozen=True)
class LayerPair:
    """Two updates of one layer.

    Attributes:
        path: Module path.
        cosine: Between the updates, in [-1, 1].
        growth: σ₁ of the sum over the larger σ₁ of the two, in [0, 2].
        shared: Mean squared cosine of the angles between their output spaces, in [0, 1].
        share: Share of the smaller adapter's energy that lies in the layer, in [0, 1].
    """

    path: str
    cosine: float
    growth: float
    shared: float
    share: float


@dataclass(frozen=True)
class PairReport:
    """What two adapters do to each other.

    Attributes:
        first: Name of one.
        second: Name of the other.
        cosine: Between all of ΔW, in [-1, 1].
        common: Number of layers that both change.
        shared: Mean overlap of the output spaces over those layers, in [0, 1].
        warnings: What stands out; empty for a pair like any other.
        suspicious: Whether it should not be composed without a look at the pictures.
    """

    first: str
    second: str
    cosine: float
    common: int
    shared: float
    warnings: tuple[str, ...]
    suspicious: bool

    @property
    def conflict(self) -> bool:
        """Whether they pull at the same weights so much that they had better take turns."""
        return abs(self.cosine) > CONFLICT

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self) | {"conflict": self.conflict}


def pair(first: Adapter, second: Adapter) -> PairReport:
    """Examines two adapters of one base at the strengths they have."""
    paths = [path for path in first.layers if path in second.layers]
    energies = [_energies(adapter.layers) for adapter in (first, second)]
    rows = [_layer_pair(path, first.layers[path], second.layers[path], energies) for path in paths]
    products = sum(row.cosine * (energies[0][row.path] * energies[1][row.path]) ** 0.5 for row in rows)
    size = (sum(energies[0].values()) * sum(energies[1].values())) ** 0.5
    cosine = products / size if size > 0 else 0.0
    shared = sum(row.shared for row in rows) / len(rows) if rows else 0.0
    warnings, suspicious = _marks(rows, cosine)
    return PairReport(first.name, second.name, cosine, len(rows), shared, warnings, suspicious)


def pairs(adapters: Sequence[Adapter]) -> list[PairReport]:
    """All pairs of several adapters."""
    return [pair(one, other) for one, other in combinations(adapters, 2)]


def _energies(layers: Mapping[str, LowRank]) -> dict[str, float]:
    return {path: norm(layer) ** 2 for path, layer in layers.items()}


def _layer_pair(
    path: str, one: LowRank, other: LowRank, energies: Sequence[Mapping[str, float]]
) -> LayerPair:
    sizes = [energies[side][path] for side in (0, 1)]
    if min(sizes) <= 0:
        return LayerPair(path, 0.0, 1.0, 0.0, 0.0)
    cosine = inner(one, other) / (sizes[0] * sizes[1]) ** 0.5
    larger = max(float(singular_values(layer)[0]) for layer in (one, other))
    both = concatenate([layer.to(dtype=torch.float64) for layer in (one, other)])
    growth = float(singular_values(both)[0])
    share = min(sizes[side] / sum(energies[side].values()) for side in (0, 1))
    return LayerPair(path, cosine, growth / larger, _overlap(one, other), share)


def _overlap(one: LowRank, other: LowRank) -> float:
    """‖UᵀV‖² / min(r₁, r₂) for orthonormal bases of the two output spaces."""
    bases = [torch.linalg.qr(layer.up.flatten(1).double()).Q for layer in (one, other)]
    least = min(basis.shape[1] for basis in bases)
    return float((bases[0].T @ bases[1]).square().sum()) / max(least, 1)


def _marks(rows: Sequence[LayerPair], cosine: float) -> tuple[tuple[str, ...], bool]:
    found, suspicious = [], False
    if cosine > DUPLICATE:
        found.append(f"they are nearly the same adapter (cosine {cosine:.2f}); one of them is enough")
    cancelling = [row for row in rows if row.cosine < CANCELLING and row.share > _SHARE]
    if cancelling:
        suspicious = True
        found.append(f"they cancel each other in {len(cancelling)} layers ({_named(cancelling)})")
    alike = cosine > 0.5
    growing = [row for row in rows if row.growth > GROWING and row.share > _SHARE]
    if growing and not alike:
        suspicious = True
        found.append(f"together they grow a direction in {len(growing)} layers ({_named(growing)})")
    if abs(cosine) > CONFLICT and cosine <= DUPLICATE:
        found.append(f"they change the same weights (cosine {cosine:+.2f})")
    return tuple(found), suspicious


def _named(rows: Sequence[LayerPair]) -> str:
    worst = sorted(rows, key=lambda row: -row.share)[:_SOME]
    return ", ".join(row.path for row in worst) + (" …" if len(rows) > _SOME else "")
