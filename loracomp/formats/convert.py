"""Converting a LoRA file to another dialect, rank or dtype, with the error that this makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.formats.matching import match
from loracomp.formats.native import Table
from loracomp.formats.reading import ERROR_KEY, RANK, load, load_parts
from loracomp.formats.source import Source
from loracomp.formats.updates import Weights
from loracomp.formats.writing import default_dialect, save
from loracomp.lowrank import LowRank, distance, norm, truncate


@dataclass(frozen=True)
class LayerError:
    """What became of one layer.

    Attributes:
        path: Module path.
        rank_before: Rank in the old file (after its algebra was brought into factors).
        rank_after: Rank in the new file.
        error: ‖ΔW_new − ΔW_old‖ / ‖ΔW_old‖, all causes together: rank, strength folding, dtype.
    """

    path: str
    rank_before: int
    rank_after: int
    error: float


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did.

    Attributes:
        source: The old file.
        target: The new file.
        base: The base the adapter is for.
        dialect: The new file's dialect.
        layers: The layers, sorted by path.
        error: ‖ΔW_new − ΔW_old‖ / ‖ΔW_old‖ over all layers together.
        approximated: Relative error of bringing an algebra into factors, by module name in the old
            file, where it was not exact; not part of the other errors.
        left_out: Why a tensor is not in the new file, by tensor name.
    """

    source: str
    target: str
    base: str
    dialect: str
    layers: tuple[LayerError, ...]
    error: float
    approximated: Mapping[str, float]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The conversion as plain JSON values."""
        return asdict(self)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dialect: str = "auto",
    base: str | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    allow_partial: bool = False,
    modules: Table | None = None,
    weights: Weights | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Conversion:
    """Writes a LoRA file anew; the target appears whole or not at all.

    Args:
        source: The file to read.
        target: The file to write; may be the same.
        dialect: A writable dialect, or "auto" for the one most tools read right for the base.
        base: The base it must be for; recognised where None.
        rank: Largest rank of a layer; best approximations where it is exceeded.
        dtype: Type of the factors; as they are where None.
        allow_partial: Leave out what cannot be represented instead of refusing.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        weights: The base's weight by module path, which DoRA needs.
        metadata: Header strings to add.

    Raises:
        FormatError: The source cannot be read; see :func:`loracomp.formats.load`.
        UsageError: A rank below 1, or the target cannot be written.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"rank {rank}: a layer needs at least rank 1")
    limit = RANK if rank is None else max(rank, RANK)
    old = load(source, base=base, modules=modules, rank=limit, weights=weights, allow_partial=allow_partial)
    lossy = allow_partial or ERROR_KEY in old.metadata
    left_out, approximated = _losses(source, old.base, modules, limit, weights) if lossy else ({}, {})
    shrunk = old if rank is None else old.map(lambda layer: truncated(layer, rank))
    kind = default_dialect(old.base) if dialect == "auto" else dialect
    path = save(shrunk, target, dialect=kind, dtype=dtype, metadata=metadata, modules=modules)
    new = load(path, base=old.base, modules=modules)
    layers, error = compare(old, new)
    return Conversion(os.fspath(source), str(path), old.base, kind, layers, error, approximated, left_out)


def _losses(
    source: str | os.PathLike[str], base: str, modules: Table | None, limit: int, weights: Weights | None
) -> tuple[dict[str, str], dict[str, float]]:
    with Source(Path(source)) as opened:
        loaded = load_parts(opened, match(opened, base, modules), limit, weights)
        return loaded.problems, loaded.errors


def truncated(layer: LowRank, rank: int) -> LowRank:
    """The best approximation of an update of a given rank; itself where it has no more."""
    return layer if layer.rank <= rank else truncate(layer, rank)


def compare(old: Adapter, new: Adapter) -> tuple[tuple[LayerError, ...], float]:
    """Errors of the layers of ``new`` against ``old``, and over all layers together."""
    rows, missed, total = [], 0.0, 0.0
    for path, layer in old.layers.items():
        other = new.layers.get(path)
        size = norm(layer)
        distance = size if other is None else _distance(layer, other)
        rows.append(
            LayerError(path, layer.rank, other.rank if other else 0, distance / size if size else 0.0)
        )
        missed, total = missed + distance**2, total + size**2
    return tuple(rows), (missed / total) ** 0.5 if total else 0.0


def _distance(first: LowRank, second: LowRank) -> float:
    """‖ΔW₁ − ΔW₂‖; 0 without arithmetic where the factors are the same."""
    same = first.scale == second.scale and first.rank == second.rank
    if same and torch.equal(first.down, second.down) and torch.equal(first.up, second.up):
        return 0.0
    return distance(first, second)
