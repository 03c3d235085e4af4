"""Several adapters into one, in memory or from file to file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.formats.layerfile import LayerFile
from loracomp.formats.native import Table
from loracomp.formats.streaming import can_stream, save_layers
from loracomp.formats.writing import save
from loracomp.fusion.offline.lineage import Identities, strings
from loracomp.fusion.offline.merger import MERGES, Merger
from loracomp.fusion.offline.parents import Family, Parent, Site, shares
from loracomp.fusion.offline.rank import RankRule
from loracomp.fusion.offline.report import Report, Scale
from loracomp.lowrank import LowRank

Progress = Callable[[int, int], None]
_AHEAD, _WEIGHERS = 4, 2


@dataclass(frozen=True)
class Plan:
    """A merge that was checked and can be carried out.

    Attributes:
        family: The parents, their weights and the seed.
        method: Name of the method.
        merger: The method.
        rule: Rank of the layers.
        options: Keyword arguments of the method.
        dtype: Type of the factors; None for that of the parents.
        averages: Whether the weights are shares of an average.
    """

    family: Family
    method: str
    merger: Merger
    rule: RankRule
    options: Mapping[str, Any]
    dtype: torch.dtype | None
    averages: bool

    def layer(self, site: Site) -> LowRank:
        """The merged update of one layer, rounded as it will be stored."""
        merged = self.merger.layer(site, self.rule, **self.options)
        return merged.to(dtype=self.dtype or _common(site.updates))

    @property
    def facts(self) -> dict[str, Any]:
        """What the lineage says of the way it was merged."""
        rank = self.rule.limit if self.rule.kind == "limit" else f"{self.rule.kind}:{self.rule.share:g}"
        asked = None if self.rule.kind == "default" else rank
        options = {**self.merger.options, **self.options}
        return {"method": self.method, "options": options, "rank": asked, "seed": self.family.seed}


def plan(
    adapters: Sequence[Parent],
    weights: Sequence[float] | None = None,
    method: str = "svd",
    *,
    samples: Sequence[float] | None = None,
    rank: int | str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Plan:
    """Checks a merge; see :func:`merge` for the arguments."""
    merger = MERGES[method]
    merger.check(method, options)
    if samples is not None and weights is not None:
        raise UsageError("weights and sample counts together; give one of them")
    given = samples if samples is not None else weights
    values = tuple(float(w) for w in given) if given is not None else (1.0,) * len(adapters)
    averages = samples is not None or merger.averages
    family = Family(tuple(adapters), values, seed)
    if averages:
        family = replace(family, weights=shares(values))
    kind = dtype or (torch.float32 if merger.exact else None)
    return Plan(family, method, merger, RankRule.parse(rank), options, kind, averages)


def merge(
    adapters: Sequence[Parent],
    weights: Sequence[float] | None = None,
    method: str = "svd",
    *,
    samples: Sequence[float] | None = None,
    rank: int | str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    name: str | None = None,
    **options: Any,
) -> Adapter:
    """One adapter out of several.

    Args:
        adapters: At least one, all for the same base; ranks, alphas and layers may differ. A layer that
            an adapter does not have counts as a zero update.
        weights: Strength of each; 1.0 where None. Negative weights subtract.
        method: A key of :data:`MERGES`.
        samples: Sample counts instead of weights: the average Σ nᵢ ΔWᵢ / Σ nᵢ.
        rank: A number, ``auto``, ``energy``, a share such as ``energy:0.95``, or None for what the
            method does by itself.
        seed: Seed of the random methods.
        dtype: Type of the factors. By default float32 for exact methods, else that of the parents.
        name: What the result is called; the parents' names with a plus between them where None.
        **options: Keyword arguments of the method.

    Raises:
        UsageError: No adapters, wrong weights, rank, or options.
        UnknownNameError: No such method.
        BaseMismatchError: Adapters for different bases, or layers of different shapes.
        FormatError: NaN or infinite values.
    """
    chosen = plan(adapters, weights, method, samples=samples, rank=rank, seed=seed, dtype=dtype, **options)
    return carried_out(chosen, name)[0]


def carried_out(
    chosen: Plan, name: str | None = None, *, progress: Progress | None = None
) -> tuple[Adapter, Report]:
    """The adapter of a plan, with lineage in its metadata, and what it kept and lost."""
    family = chosen.family
    identities, scale = Identities(len(family.parents)), _scale(chosen)
    layers = {}
    for done, site in enumerate(family.sites(), 1):
        layer = chosen.layer(site)
        identities.add(site.path, site.updates)
        scale.add(site, layer)
        if layer.rank:
            layers[site.path] = layer
        if progress:
            progress(done, len(family.paths))
    header = strings(family, identities.hashes(), "merge", chosen.facts)
    called = name or "+".join(parent.name for parent in family.parents)
    return Adapter(layers, family.base, called, header), scale.report(chosen.method)


def merge_files(
    files: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    weights: Sequence[float] | None = None,
    method: str = "svd",
    *,
    base: str | None = None,
    modules: Table | None = None,
    dialect: str = "auto",
    name: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Merges LoRA files into one, reading the parents layer by layer.

    Where the method stacks, the target is written layer by layer as well; it appears whole or not at all.

    Args:
        files: At least one.
        target: The file to write.
        weights: Strength of each; 1.0 where None.
        method: A key of :data:`MERGES`.
        base: The base they must be for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        dialect: A writable dialect, or "auto" for the one that most tools read right for the base.
        name: What the result is called; the parents' names with a plus between them where None.
        progress: Called with (layers done, layers in all).
        **settings: As for :func:`merge`.

    Raises:
        UsageError: As for :func:`merge`, or the target cannot be written.
        FormatError: A file cannot be read; see :func:`loracomp.formats.load`.
    """
    with ExitStack() as opened:
        parents = [opened.enter_context(LayerFile(file, base=base, modules=modules)) for file in files]
        chosen = plan(parents, weights, method, **settings)
        ranks = dict.fromkeys(chosen.family.paths)
        if chosen.merger.stacks and modules is None and can_stream(ranks, chosen.family.base, dialect):
            return _streamed(chosen, target, dialect, name, progress)
        adapter, report = carried_out(chosen, name, progress=progress)
    save(adapter, target, dialect=dialect, modules=modules)
    return report


def _streamed(
    chosen: Plan,
    target: str | os.PathLike[str],
    dialect: str,
    name: str | None,
    progress: Progress | None,
) -> Report:
    """A stacked merge that holds few layers of all parents at a time, and is weighed while it is written."""
    family = chosen.family
    identities, scale = Identities(len(family.parents)), _scale(chosen)
    done: list[str] = []
    weighing: deque[Future[None]] = deque()

    def weigh(site: Site, layer: LowRank) -> None:
        identities.add(site.path, site.updates)
        scale.add(site, layer)

    def settle(left: int) -> None:
        while len(weighing) > left:
            weighing.popleft().result()

    def make(path: str) -> LowRank:
        site = family.site(path)
        layer = chosen.layer(site)
        settle(_AHEAD)
        weighing.append(worker.submit(weigh, site, layer))
        done.append(path)
        if progress:
            progress(len(done), len(family.paths))
        return layer

    def header() -> dict[str, str]:
        settle(0)
        return strings(family, identities.hashes(), "merge", chosen.facts)

    with ThreadPoolExecutor(_WEIGHERS) as worker:
        save_layers(
            _stacked_sizes(family),
            make,
            target,
            base=family.base,
            name=name or "+".join(parent.name for parent in family.parents),
            dtype=chosen.dtype or torch.float32,
            dialect=dialect,
            metadata=header,
        )
    return scale.report(chosen.method)


def _stacked_sizes(family: Family) -> dict[str, tuple[tuple[int, ...], int]]:
    """Weight shape and stacked rank of each layer that some parent changes."""
    found = {}
    for path in family.paths:
        sizes = [_size(parent, path) for parent in family.parents if path in parent.layers]
        if rank := sum(rank for _, rank in sizes):
            found[path] = sizes[0][0], rank
    return found


def _size(parent: Parent, path: str) -> tuple[tuple[int, ...], int]:
    if isinstance(parent, LayerFile):
        return parent.size(path)
    return parent.layers[path].weight_shape, parent.layers[path].rank


def _scale(chosen: Plan) -> Scale:
    return Scale(chosen.family, naive=chosen.averages, stacks=chosen.merger.stacks)


def _common(updates: Sequence[LowRank]) -> torch.dtype:
    """The type that holds the factors of all parents."""
    types = [factor.dtype for update in updates if update.rank for factor in (update.up, update.down)]
    return reduce(torch.promote_types, types, types[0]) if types else torch.float32
