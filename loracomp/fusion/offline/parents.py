"""What is merged: adapters or open files, one layer of all of them at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from typing import Protocol

import torch

from loracomp.bases import BASES
from loracomp.errors import BaseMismatchError, FormatError, UsageError
from loracomp.formats.health import finite
from loracomp.formats.layerfile import LayerFile
from loracomp.formats.updates import shaped
from loracomp.lowrank import LowRank, norm, zero


class Parent(Protocol):
    """An :class:`~loracomp.adapter.Adapter`, or a :class:`~loracomp.formats.layerfile.LayerFile`."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def base(self) -> str:
        """Name of the base that it was made for."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Strings from its header."""

    @property
    def layers(self) -> Mapping[str, LowRank]:
        """Updates by module path."""


@dataclass(frozen=True, eq=False)
class Family:
    """The parents of a merge with their weights.

    Attributes:
        parents: At least one, all for the same base.
        weights: One finite number each; the exact sum is Σ wᵢ ΔWᵢ.
        seed: What random methods draw from.

    Raises:
        UsageError: No parents, no layers, or not one finite weight per parent.
        BaseMismatchError: The parents are for different bases.
    """

    parents: tuple[Parent, ...]
    weights: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parents:
            raise UsageError("no adapters to merge; name at least one")
        if len(self.weights) != len(self.parents):
            given = f"{len(self.weights)} weights for {len(self.parents)} adapters"
            raise UsageError(f"{given}; give one weight per adapter")
        for weight in self.weights:
            if not isfinite(weight):
                raise UsageError(f"weight {weight} is not a finite number; give one such as 0.8")
        first = self.parents[0]
        for other in self.parents[1:]:
            if other.base != first.base:
                why = f"{first.name}, which it is merged with, is for {_title(first.base)}"
                raise BaseMismatchError(other.name, _title(other.base), _title(first.base), why)
        if not any(parent.layers for parent in self.parents):
            raise UsageError("the adapters change no layer; there is nothing to merge")

    @property
    def base(self) -> str:
        """Name of the base of all parents."""
        return self.parents[0].base

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Module paths of all layers that some parent changes, sorted."""
        return tuple(sorted({path for parent in self.parents for path in parent.layers}))

    def site(self, path: str) -> Site:
        """One layer with the updates of all parents.

        Raises:
            FormatError: NaN or infinite values.
            BaseMismatchError: Updates of different shapes.
        """
        there = [parent.layers.get(path) for parent in self.parents]
        shape = next(layer.weight_shape for layer in there if layer is not None)
        pairs = zip(self.parents, there, strict=True)
        updates = tuple(_fitted(parent, path, layer, shape) for parent, layer in pairs)
        return Site(path, shape, updates, self.weights, self)

    def sites(self) -> Iterator[Site]:
        """The layers by path, those left out that no parent changes after all."""
        return (site for site in map(self.site, self.paths) if site.largest)

    @cached_property
    def peaks(self) -> tuple[float, ...]:
        """Largest root mean square of the entries of ΔW over the layers, by parent."""
        peaks = [0.0] * len(self.parents)
        for site in self.sites():
            for index, update in enumerate(site.updates):
                peaks[index] = max(peaks[index], norm(update) / prod(site.shape) ** 0.5)
        return tuple(peaks)


@dataclass(frozen=True, eq=False)
class Site:
    """One layer of a merge.

    Attributes:
        path: Module path.
        shape: Shape of the layer's weight.
        updates: Each parent's update at the strength it was trained at; rank 0 where it has none.
        weights: The parents' weights.
        family: All of the merge.
    """

    path: str
    shape: tuple[int, ...]
    updates: tuple[LowRank, ...]
    weights: tuple[float, ...]
    family: Family

    @cached_property
    def parts(self) -> tuple[LowRank, ...]:
        """wᵢ ΔWᵢ of each parent; their sum is what a merge approximates."""
        pairs = zip(self.updates, self.weights, strict=True)
        return tuple(update.scaled(weight) for update, weight in pairs)

    @property
    def largest(self) -> int:
        """The largest rank of a parent here."""
        return max(update.rank for update in self.updates)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of ΔW with all input axes flattened."""
        return self.shape[0], prod(self.shape[1:])

    def generator(self, index: int) -> torch.Generator:
        """Random numbers of parent ``index`` in this layer, whatever was drawn elsewhere."""
        text = f"{self.family.seed}\0{self.path}\0{index}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)


def _title(base: str) -> str:
    return BASES[base].title if base in BASES else base


def _fitted(parent: Parent, path: str, layer: LowRank | None, shape: tuple[int, ...]) -> LowRank:
    if layer is None:
        return zero(shape)
    # Open files check what they read.
    sound = isinstance(parent, LayerFile) or (finite(layer.up) and finite(layer.down))
    if not sound or not isfinite(layer.scale):
        raise FormatError(f"{parent.name}: the layer {path} holds NaN or infinite values; train it again")
    if layer.weight_shape[0] != shape[0] or prod(layer.weight_shape[1:]) != prod(shape[1:]):
        why = f"{path} has the shape {layer.weight_shape}, elsewhere {shape}"
        raise BaseMismatchError(parent.name, f"another {_title(parent.base)}", _title(parent.base), why)
    return shaped(layer, shape)


def shares(samples: Sequence[float]) -> tuple[float, ...]:
    """Sample counts as weights that sum to 1, for averages (FedAvg, McMahan et al., arXiv:1602.05629).

    Raises:
        UsageError: A negative or infinite count, or none above zero.
    """
    if any(not isfinite(count) or count < 0 for count in samples) or not sum(samples) > 0:
        raise UsageError(f"sample counts {list(samples)}: give numbers of at least 0, one of them above 0")
    return tuple(count / sum(samples) for count in samples)
