"""A new adapter out of the nearest ones, for a text that none of them fits alone.

The idea is SG-LoRA's (arXiv:2509.10535): weights of experts near a description, mixed by how near they
are. Here updates are mixed and never factors, whose gauge is arbitrary: ΔW = Σ wᵢ ΔWᵢ, brought to a rank
by an exact singular value decomposition in factor space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.lowrank import LowRank, concatenate, inner, norm, truncate

MOST = 8
TEMPERATURE = 0.1
KEY = "loracomp.synthesis"
_FREE = frozenset({"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "Unlicense"})


@dataclass(frozen=True)
class Synthesis:
    """How an adapter was made.

    Attributes:
        parents: Names of the adapters that it is made of.
        digests: Their content hashes.
        weights: Their weights, which sum to 1.
        cosines: Cosine of the result with each of them, in [-1, 1].
        mutual: Mean cosine between them.
        chance: Mean cosine between unrelated adapters, below which nothing is made.
        kept: Share of the mixture's energy that the rank keeps, in [0, 1].
        size: ‖ΔW‖ over the weighted mean of the parents'; far below 1 they cancel each other.
        nearest: Name of the parent of largest weight.
    """

    parents: tuple[str, ...]
    digests: tuple[str, ...]
    weights: tuple[float, ...]
    cosines: tuple[float, ...]
    mutual: float
    chance: float
    kept: float
    size: float
    nearest: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    def advice(self) -> str:
        """When the result is worth a try, and when the nearest adapter alone is better."""
        lead = max(self.weights)
        if lead > 0.8:
            return f"{self.nearest} alone makes up {lead:.0%} of it; use that instead"
        if self.size < 0.7:
            lost = f"the parents cancel {1 - self.size:.0%} of their size"
            return f"{lost}; compare pictures with {self.nearest} alone"
        return (
            f"mixtures were never better than the nearest alone where it was measured; compare {self.nearest}"
        )


def mixing_weights(scores: Sequence[float], temperature: float = TEMPERATURE) -> list[float]:
    """softmax(score / temperature); raises ValueError without scores."""
    if not scores:
        raise ValueError("no scores")
    return torch.softmax(torch.tensor(scores, dtype=torch.float64) / temperature, 0).tolist()


def synthesize(
    adapters: Sequence[Adapter],
    scores: Sequence[float],
    *,
    name: str,
    chance: float = 0.0,
    rank: int | None = None,
    licences: Sequence[str] = (),
    temperature: float = TEMPERATURE,
) -> tuple[Adapter, Synthesis]:
    """Mixes adapters of one base by their scores.

    Args:
        adapters: Two to eight neighbours.
        scores: How near each is.
        name: What the result is called.
        chance: Mean cosine between unrelated adapters of the collection.
        rank: Rank of the result; the largest of the parents' where None.
        licences: What the parents claim.
        temperature: How much the nearest dominates.

    Returns:
        The adapter, its parents noted in its metadata, and how it was made.

    Raises:
        UsageError: Too few or many, several bases, licences that do not go together, or neighbours that
            have no more in common than any adapters.
    """
    if not 2 <= len(adapters) <= MOST:
        raise UsageError(f"{len(adapters)} neighbours; a mixture needs 2 to {MOST}")
    if len({adapter.base for adapter in adapters}) > 1:
        raise UsageError("neighbours of several bases; name one with --base")
    licence = _common_licence(licences)
    mutual = mean_cosine(adapters)
    if mutual <= chance:
        raise UsageError(
            f"the neighbours have no more in common than any adapters (mean cosine {mutual:.3f}, chance "
            f"{chance:.3f}); mixing them would only make each weaker: use the nearest, {adapters[0].name}"
        )
    weights = mixing_weights(scores, temperature)
    whole = _mixed(adapters, weights)
    limit = rank or max(max(adapter.ranks) for adapter in adapters)
    layers = {path: truncate(layer, limit) for path, layer in whole.items()}
    energy = sum(norm(layer) ** 2 for layer in whole.values())
    made = Adapter({p: v.to(dtype=torch.float32) for p, v in layers.items()}, adapters[0].base, name)
    report = _report(adapters, weights, made, energy, mutual, chance)
    said = {KEY: json.dumps(report.to_dict(), sort_keys=True), "modelspec.title": name}
    said |= {"modelspec.license": licence} if licence else {}
    said |= {"modelspec.merged_from": ", ".join(report.parents)}
    return Adapter(made.layers, made.base, name, said), report


def _report(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    made: Adapter,
    energy: float,
    mutual: float,
    chance: float,
) -> Synthesis:
    sizes = [_size(adapter) for adapter in adapters]
    mean = sum(weight * size for weight, size in zip(weights, sizes, strict=True))
    kept = _size(made) ** 2 / energy if energy > 0 else 0.0
    lead = max(range(len(weights)), key=lambda place: weights[place])
    return Synthesis(
        parents=tuple(adapter.name for adapter in adapters),
        digests=tuple(adapter.digest for adapter in adapters),
        weights=tuple(weights),
        cosines=tuple(cosine(made, adapter) for adapter in adapters),
        mutual=mutual,
        chance=chance,
        kept=min(kept, 1.0),
        size=energy**0.5 / mean if mean > 0 else 0.0,
        nearest=adapters[lead].name,
    )


def _mixed(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, LowRank]:
    paths = sorted({path for adapter in adapters for path in adapter.layers})
    mixed = {}
    for path in paths:
        parts = [
            adapter.layers[path].to(dtype=torch.float64).scaled(weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if path in adapter.layers
        ]
        mixed[path] = concatenate(parts)
    return mixed


def _size(adapter: Adapter) -> float:
    return sum(norm(layer) ** 2 for layer in adapter.layers.values()) ** 0.5


def cosine(first: Adapter, second: Adapter) -> float:
    """Cosine between two adapters' ΔW over all layers, in [-1, 1]; absent layers count as zero."""
    sizes = _size(first) * _size(second)
    common = first.layers.keys() & second.layers.keys()
    product = sum(inner(first.layers[path], second.layers[path]) for path in sorted(common))
    return product / sizes if sizes > 0 else 0.0


def mean_cosine(adapters: Sequence[Adapter]) -> float:
    """Mean cosine over all pairs."""
    found = [cosine(one, other) for n, one in enumerate(adapters) for other in adapters[:n]]
    return sum(found) / len(found)


def _common_licence(licences: Sequence[str]) -> str:
    """The licences of all parents together; raises :class:`UsageError` where they may not be mixed."""
    told = sorted({part.strip() for licence in licences for part in licence.split(",") if part.strip()})
    foreign = [part for part in told if part not in _FREE]
    if len(told) > 1 and foreign:
        raise UsageError(
            f"the licences {', '.join(told)} may not go together; choose with --where, for example "
            f"\"licence = '{told[0]}'\""
        )
    return ", ".join(told)
