"""What adapters will do to each other, told from their factors alone, before anything is drawn.

Everything about a layer follows from two Gram matrices of the stacked factors, UᵀU and DDᵀ of size R × R with
R the sum of ranks: inner products, principal angles, and the singular values of the sum. So a report on
several SDXL adapters takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion.blocks import names
from loracomp.lowrank import LowRank

_NOTHING = 1e-7


@dataclass(frozen=True)
class Layer:
    """One layer that some of the adapters change.

    Attributes:
        products: ⟨ΔWᵢ, ΔWⱼ⟩, shape (adapters, adapters), float64.
        inputs: Overlap of the row spaces of each two, in [0, 1]: mean squared cosine of the principal angles;
            0 where either is zero. Shape (adapters, adapters).
        outputs: The same of the column spaces.
        chance: What two random spaces of these ranks would have, mean of both sides, same shape.
        lost: Energy ‖·‖² that the best approximation of Σ wᵢ ΔWᵢ at the chosen rank loses.
        energy: Energy of the sum.
    """

    products: Tensor
    inputs: Tensor
    outputs: Tensor
    chance: Tensor
    lost: float
    energy: float


@dataclass(frozen=True)
class Block:
    """A block of the model; numbers per pair of adapters are in the order of :attr:`Interference.pairs`.

    Attributes:
        name: Short name (:mod:`loracomp.fusion.blocks`).
        norms: ‖ΔW‖ of each adapter over the block's layers together, times its weight.
        cosines: Σ ⟨ΔWᵢ, ΔWⱼ⟩ over the norms, in [-1, 1]; None where either is zero.
        overlaps: Overlap of the spaces that they read and write, less what chance gives, in [0, 1]; energy-
            weighted over layers; None where either is zero.
        lost: Share of the sum's energy that is lost at the report's rank.
        features: Mean |cos| of the adapters' outputs on real activations; None where not measured.
    """

    name: str
    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    overlaps: tuple[float | None, ...]
    lost: float
    features: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Interference:
    """The report on several adapters.

    Attributes:
        adapters: Their names.
        weights: Their weights.
        rank: The rank at which energy is lost: the largest of an adapter.
        blocks: By block, in the order of the model.
        whole: The same over all layers.
        collisions: Trigger phrases that two adapters share, by pair of positions.
        bands: ``high``, ``low`` or ``unknown`` per adapter, None where not profiled.
    """

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    rank: int
    blocks: tuple[Block, ...]
    whole: Block
    collisions: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    bands: tuple[str | None, ...] = ()

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Positions of each two adapters."""
        return tuple(combinations(range(len(self.adapters)), 2))


def interference(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    features: Mapping[str, Tensor] | None = None,
    bands: Sequence[str | None] = (),
) -> Interference:
    """Compares two or more adapters of one base.

    Args:
        adapters: What to compare.
        weights: One strength each; 1.0 by default.
        rank: Rank at which to say how much energy is lost; the largest of any adapter by default.
        features: Mean |cos| of outputs by layer, shape (adapters, adapters), NaN where there is none.
        bands: Frequency classes where they are known.

    Raises:
        UsageError: Fewer than two adapters, or not one weight each.
        BaseMismatchError: Adapters of different bases.
    """
    values = tuple(weights) if weights is not None else (1.0,) * len(adapters)
    _check(adapters, values)
    limit = rank or max(layer.rank for adapter in adapters for layer in adapter.layers.values())
    layers = {
        path: examine([a.layers.get(path) for a in adapters], values, limit)
        for path in sorted({path for adapter in adapters for path in adapter.layers})
    }
    groups: dict[str, list[str]] = {}
    for path in layers:
        groups.setdefault(block_of(path), []).append(path)
    found = tuple(
        _block(name, [(p, layers[p]) for p in groups[name]], values, features) for name in _ordered(groups)
    )
    whole = _block("all", list(layers.items()), values, features)
    titles = tuple(adapter.name for adapter in adapters)
    return Interference(titles, values, limit, found, whole, collisions(adapters), tuple(bands))


def block_of(path: str) -> str:
    """The most specific short name above a layer; its component where it has none."""
    short = names(path)[path.count(".") + 1 : -1]
    return short[0] if short else path.split(".", 1)[0]


def collisions(adapters: Sequence[Adapter]) -> dict[tuple[int, int], tuple[str, ...]]:
    """Trigger phrases of one of two adapters that occur, as whole words, in one of the other's."""
    phrases = [[f" {' '.join(phrase.lower().split())} " for phrase in a.trigger_words] for a in adapters]
    found = {}
    for i, j in combinations(range(len(phrases)), 2):
        both = (sorted(pair, key=len) for pair in product(phrases[i], phrases[j]))
        shared = {short.strip() for short, long in both if short in long}
        if shared:
            found[i, j] = tuple(sorted(shared))
    return found


def examine(updates: Sequence[LowRank | None], weights: Sequence[float], rank: int) -> Layer:
    """One layer with the updates of all adapters, None for those that leave it alone."""
    count = len(updates)
    there = [update for update in updates if update is not None]
    pairs = [update.matrices(torch.float32) for update in there]
    up, down = torch.cat([u for u, _ in pairs], dim=1), torch.cat([d for _, d in pairs])
    left, right = (up.T @ up).double(), (down @ down.T).double()
    owner = torch.tensor([i for i, u in enumerate(updates) if u is not None for _ in range(u.rank)])
    member = torch.nn.functional.one_hot(owner, count).double()
    spectrum = _energies(left, right, torch.tensor(weights, dtype=torch.float64)[owner])
    ranks = member.sum(0)
    fewest = torch.minimum(ranks[:, None], ranks).clamp_min(1)
    widths = 1 / up.shape[0] + 1 / down.shape[1]
    return Layer(
        member.T @ (left * right) @ member,
        _overlap(right, member) / fewest,
        _overlap(left, member) / fewest,
        (ranks[:, None] * ranks * widths / 2 / fewest).clamp_max(1),
        float(spectrum[rank:].sum()),
        float(spectrum.sum()),
    )


def _energies(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Squared singular values of U diag(w) D, descending, from the Gram matrices of U and D."""
    values, vectors = torch.linalg.eigh(left)
    root = vectors * values.clamp_min(0).sqrt()
    inner = root.T @ (weights[:, None] * right * weights) @ root
    return torch.linalg.eigvalsh(inner).clamp_min(0).flip(0)


def _overlap(gram: Tensor, member: Tensor) -> Tensor:
    """‖QᵢᵀQⱼ‖² of the spaces that the columns of each owner span, shape (adapters, adapters)."""
    white = torch.zeros_like(gram)
    for index in range(member.shape[1]):
        own = member[:, index].nonzero().flatten()
        values, vectors = torch.linalg.eigh(gram[own[:, None], own])
        kept = values > values.max() * _NOTHING if len(own) else values > 0
        scaled = vectors[:, kept] * values[kept].rsqrt() @ vectors[:, kept].T
        white[own[:, None], own] = scaled
    return member.T @ (white @ gram @ white).square() @ member


def _block(
    name: str,
    layers: Sequence[tuple[str, Layer]],
    weights: Sequence[float],
    features: Mapping[str, Tensor] | None,
) -> Block:
    values = torch.tensor(weights, dtype=torch.float64)
    products = torch.stack([layer.products for _, layer in layers])
    sums = products.sum(0)
    norms = sums.diagonal().clamp_min(0).sqrt()
    cosines = sums / (norms[:, None] * norms)
    sizes = products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    mass = sizes[:, :, None] * sizes[:, None]
    both = torch.stack([(layer.inputs + layer.outputs) / 2 for _, layer in layers])
    chance = torch.stack([layer.chance for _, layer in layers])
    excess = ((both - chance) / (1 - chance).clamp_min(_NOTHING)).clamp(0, 1)
    overlaps = (excess * mass).sum(0) / mass.sum(0)
    energy = sum(layer.energy for _, layer in layers)
    lost = sum(layer.lost for _, layer in layers)
    seen = None
    if features is not None:
        known = [
            (features[path], weight)
            for (path, _), weight in zip(layers, mass, strict=True)
            if path in features
        ]
        seen = _upper(_weighted(known, len(weights)))
    return Block(
        name,
        tuple((norms * values.abs()).tolist()),
        _upper(cosines.clamp(-1, 1)),
        _upper(overlaps),
        lost / energy if energy > 0 else 0.0,
        seen,
    )


def _weighted(tables: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Means of tables with weights, entries that are NaN left out."""
    total = torch.zeros(count, count, dtype=torch.float64)
    weight = torch.zeros(count, count, dtype=torch.float64)
    for table, mass in tables:
        there = ~table.isnan()
        total += torch.where(there, table.double() * mass, 0.0)
        weight += torch.where(there, mass, 0.0)
    return total / weight


def _upper(table: Tensor) -> tuple[float | None, ...]:
    """The entries above the diagonal, None for NaN."""
    rows, columns = torch.triu_indices(len(table), len(table), 1)
    return tuple(None if value != value else round(value, 6) for value in table[rows, columns].tolist())


def _ordered(groups: Iterable[str]) -> list[str]:
    """Block names in the order in which a model runs them: text, down, mid, up; blocks by number."""
    order = ("text", "down", "mid", "up", "block", "single")

    def place(name: str) -> tuple[int, list[tuple[bool, str]]]:
        head, *rest = name.split(".")
        known = order.index(head) if head in order else len(order)
        return known, [(part.isdigit(), part.zfill(4)) for part in (head, *rest)]

    return sorted(groups, key=place)


def _check(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if len(adapters) < 2:
        raise UsageError("interference is between adapters; name two or more")
    if len(weights) != len(adapters):
        raise UsageError(f"{len(weights)} weights for {len(adapters)} adapters; give one weight per adapter")
    for other in adapters[1:]:
        if other.base != adapters[0].base:
            raise BaseMismatchError(other.name, other.base, adapters[0].base)
