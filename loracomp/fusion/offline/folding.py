"""Folding adapters into weights: always from the pristine weights, in float32, rounded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.errors import BaseMismatchError, UsageError
from loracomp.fusion.offline.parents import Family, Parent, Site
from loracomp.fusion.stacked import reshape


@dataclass(frozen=True)
class FoldedLayer:
    """What folding did to one weight.

    Attributes:
        path: Module path.
        dtype: Type of the weight.
        change: ‖ΔW‖ / ‖W‖, Frobenius.
        loss: ‖W′ - (W + ΔW)‖ / ‖ΔW‖: what rounding to ``dtype`` took of the update; 0 where ΔW is 0.
    """

    path: str
    dtype: str
    change: float
    loss: float


@dataclass(frozen=True)
class FoldReport:
    """A fold in numbers.

    Attributes:
        adapters: Names of the adapters.
        weights: Their weights.
        layers: The weights that changed, by path.
        loss: Rounding loss over all layers together, relative to all of ΔW.
    """

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    layers: tuple[FoldedLayer, ...]
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


class Losses:
    """Collects what rounding took, layer by layer."""

    def __init__(self) -> None:
        self._rows: dict[str, FoldedLayer] = {}
        self._missed = self._moved = 0.0

    def add(self, path: str, weight: Tensor, update: Tensor, folded: Tensor) -> None:
        """Takes in one layer: pristine weight, ΔW, and what is stored."""
        moved, size = float(update.double().norm()), float(weight.double().norm())
        missed = float((folded.double() - weight.double() - update.double()).norm())
        self._missed += missed**2
        self._moved += moved**2
        kind = str(weight.dtype).removeprefix("torch.")
        change = moved / size if size else float("inf")
        self._rows[path] = FoldedLayer(path, kind, change, missed / moved if moved else 0.0)

    def report(self, family: Family) -> FoldReport:
        """The whole fold."""
        names = tuple(parent.name for parent in family.parents)
        rows = tuple(self._rows[path] for path in sorted(self._rows))
        loss = (self._missed / self._moved) ** 0.5 if self._moved else 0.0
        return FoldReport(names, family.weights, rows, loss)


def folded_weight(weight: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """W + Σ wᵢ ΔWᵢ, added in float32 (float64 for a float64 weight) and rounded once to the weight's dtype.

    Args:
        weight: The pristine weight.
        site: The adapters' updates of this layer and their weights; 1 × 1 convolutions and matrices are
            taken for each other.

    Returns:
        The new weight, and ΔW in the dtype of the sum.

    Raises:
        UsageError: The weight holds integers (a quantised model).
        ValueError: The update is of another shape.
    """
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise UsageError(
            f"{site.path}: the weight is stored as {weight.dtype}; fold into weights of 16 bits or more"
        )
    kind = torch.promote_types(weight.dtype, torch.float32)
    update = torch.zeros(weight.shape, dtype=kind, device=weight.device)
    for part in site.parts:
        if part.rank:
            update += reshape(part, tuple(weight.shape)).to(weight.device).delta(kind)
    return (weight.to(kind) + update).to(weight.dtype), update


class Folding:
    """Adapters folded into the weights of live modules; the pristine weights are kept and put back.

    Nothing is ever subtracted: another fold starts from the pristine weights again, so that any number of
    folds and unfolds leaves them bit for bit as they were.

    Args:
        modules: Linear and convolution layers by module path (``loracomp.pipeline.layers_of(pipe)``).
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._pristine: dict[str, Tensor] = {}

    @torch.no_grad()
    def fold(self, adapters: Sequence[Parent], weights: Sequence[float] | None = None) -> FoldReport:
        """Puts W + Σ wᵢ ΔWᵢ in the place of W, whatever was folded before.

        Raises:
            BaseMismatchError: A layer is not in the model, or of another shape; nothing is changed then.
            UsageError: No adapters, or not one weight per adapter; nothing is changed then.
        """
        family = Family(tuple(adapters), tuple(weights) if weights is not None else (1.0,) * len(adapters))
        losses, fresh = Losses(), {}
        for site in family.sites():
            pristine = self._pristine.get(site.path)
            pristine = self._weight(family, site.path) if pristine is None else pristine
            try:
                fresh[site.path], update = folded_weight(pristine, site)
            except ValueError as error:
                raise misfit(family, f"{site.path}: {error}") from error
            losses.add(site.path, pristine, update, fresh[site.path])
        self.unfold()
        for path, folded in fresh.items():
            weight = self._weight(family, path)
            self._pristine[path] = weight.clone()
            weight.copy_(folded)
        return losses.report(family)

    @torch.no_grad()
    def unfold(self) -> None:
        """Puts the pristine weights back."""
        while self._pristine:
            path, pristine = self._pristine.popitem()
            weight: Any = self._modules[path].weight
            weight.copy_(pristine)

    def _weight(self, family: Family, path: str) -> Tensor:
        if path not in self._modules:
            raise misfit(family, f"the base has no layer {path}")
        weight: Any = self._modules[path].weight
        return weight.data

    def __enter__(self) -> Folding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unfold()


def fold(
    modules: Mapping[str, nn.Module], adapters: Sequence[Parent], weights: Sequence[float] | None = None
) -> Folding:
    """Folds adapters into live modules; the result unfolds them (:class:`Folding`)."""
    folding = Folding(modules)
    folding.fold(adapters, weights)
    return folding


def misfit(family: Family, why: str) -> BaseMismatchError:
    """The error for adapters that do not fit the weights at hand."""
    names = ", ".join(parent.name for parent in family.parents)
    return BaseMismatchError(names, family.base, "another model", why)
