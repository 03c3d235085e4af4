"""Folding adapters into a checkpoint on disk: a single file, or a folder in diffusers format."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from loracomp.bases import BASES
from loracomp.errors import FormatError, UsageError
from loracomp.formats.gate import Limits
from loracomp.formats.health import finite
from loracomp.formats.metadata import HASH_KEYS
from loracomp.formats.native import Module
from loracomp.formats.source import Source
from loracomp.formats.writing import header_bytes, write_atomically
from loracomp.fusion.offline.checkpoint_names import folder_places, places
from loracomp.fusion.offline.folding import FoldReport, Losses, folded_weight, misfit
from loracomp.fusion.offline.lineage import LINEAGE, MANIFESTS, Identities, strings
from loracomp.fusion.offline.parents import Family, Parent

LIMITS = Limits(file_bytes=128 << 30, header_bytes=64 << 20, tensors=100_000)
_WEIGHTS = ".safetensors"


def fold_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    adapters: Sequence[Parent],
    weights: Sequence[float] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FoldReport:
    """Writes a base model with W + Σ wᵢ ΔWᵢ in place of W, from the pristine file, rounded once.

    Every weight keeps its dtype; all other tensors and files are copied as they are. One tensor is in memory
    at a time, and the target appears whole or not at all.

    Args:
        source: A ``.safetensors`` checkpoint of a known base, or a folder in diffusers format.
        target: The file, or the folder, which must not exist yet, to write.
        adapters: At least one, all for the base.
        weights: Strength of each; 1.0 where None.
        progress: Called with (layers folded, layers in all).

    Raises:
        BaseMismatchError: A layer of the adapters is not in the checkpoint, or of another shape.
        UsageError: No adapters, wrong weights, or a target that cannot be written.
        FormatError: The source cannot be read.
    """
    old, new = Path(source), Path(target)
    family = Family(tuple(adapters), tuple(weights) if weights is not None else (1.0,) * len(adapters))
    job = _Job(family, progress)
    if old.is_dir():
        _fold_folder(old, new, job)
    else:
        _fold_file(old, new, job)
    return job.losses.report(family)


class _Job:
    """A fold under way: what is left to fold, and what rounding took."""

    def __init__(self, family: Family, progress: Callable[[int, int], None] | None) -> None:
        self.family, self.losses, self._progress = family, Losses(), progress
        self.found: set[str] = set()
        identities = Identities(len(family.parents))
        self.shapes: dict[str, tuple[int, ...]] = {}
        for site in family.sites():
            identities.add(site.path, site.updates)
            self.shapes[site.path] = site.shape
        self.header = strings(family, identities.hashes(), "fold", {})

    def folded(self, key: str, module: Module, values: Tensor) -> Tensor:
        """A tensor of the checkpoint with the updates of its layers."""
        if values.numel() != torch.Size(module.shape).numel() or values.shape[0] != module.shape[0]:
            raise misfit(self.family, f"{key} has the shape {tuple(values.shape)}, not {module.shape}")
        out = values.clone()
        for piece in module.pieces:
            if piece.path not in self.shapes:
                continue
            rows = torch.cat([torch.arange(start, stop) for start, stop in piece.rows])
            pristine = values[rows]
            try:
                fresh, update = folded_weight(pristine, self.family.site(piece.path))
            except ValueError as error:
                raise misfit(self.family, f"{key}: {error}") from error
            if not finite(fresh):
                raise UsageError(f"{piece.path}: the sum does not fit into {values.dtype}; lower the weights")
            self.losses.add(piece.path, pristine, update, fresh)
            out[rows] = fresh
            self._count(piece.path)
        return out

    def _count(self, path: str) -> None:
        self.found.add(path)
        if self._progress:
            self._progress(len(self.found), len(self.shapes))

    def check(self, there: set[str], label: str) -> None:
        """Raises :class:`BaseMismatchError` where a layer has no place in the checkpoint."""
        missing = sorted(self.shapes.keys() - there)
        if missing:
            many = f"{len(missing)} of {len(self.shapes)} layers are not in {label}, such as {missing[0]}"
            raise misfit(self.family, many)


def _touched(job: _Job, modules: Mapping[str, Module], source: Source) -> dict[str, Module]:
    """Tensors of an open file that the adapters change."""
    return {
        key: module
        for key, module in modules.items()
        if key in source.tensors and any(piece.path in job.shapes for piece in module.pieces)
    }


def _fold_file(old: Path, new: Path, job: _Job) -> None:
    if job.family.base not in BASES:
        raise UsageError(f"{old}: a single file needs adapters for a known base; fold into a folder")
    if new.exists() and old.exists() and new.samefile(old):
        raise UsageError(f"{new}: is the base itself; write another file, and keep the base pristine")
    modules: dict[str, Module] = {}
    for place in places(job.family.base):
        modules.setdefault(place.key, place.module)
    with Source(old, LIMITS) as source:
        touched = _touched(job, modules, source)
        job.check({piece.path for module in touched.values() for piece in module.pieces}, source.label)
        write_atomically(new, _rewritten(source, touched, job))


def _rewritten(source: Source, touched: Mapping[str, Module], job: _Job) -> Iterator[bytes]:
    """The file with other values in some tensors, tensor by tensor."""
    stale = (*HASH_KEYS, LINEAGE, MANIFESTS)
    kept = {key: value for key, value in source.metadata.items() if key not in stale}
    table = [(key, info.dtype, info.shape) for key, info in source.tensors.items()]
    yield header_bytes(table, {**kept, **job.header})
    for key in source.tensors:
        values = source.tensor(key)
        if key in touched:
            values = job.folded(key, touched[key], values)
        yield values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _fold_folder(old: Path, new: Path, job: _Job) -> None:
    if not (old / "model_index.json").is_file():
        raise FormatError(f"{old}: no model_index.json in it; give the folder of a diffusers pipeline")
    if new.exists():
        raise UsageError(f"{new}: exists already; name a new folder")
    if not new.parent.is_dir():
        raise UsageError(f"{new}: the folder {new.parent} does not exist; create it or choose another")
    job.check(_in_folder(old, job), str(old))
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{new.name[:80]}.", suffix=".part", dir=new.parent
        ) as place:
            fresh = Path(place) / "model"
            shutil.copytree(old, fresh, ignore=lambda folder, names: _folded_names(old, folder, names, job))
            for file, modules in _component_files(old, job):
                with Source(file, LIMITS) as source:
                    touched = _touched(job, modules, source)
                    write_atomically(fresh / file.relative_to(old), _rewritten(source, touched, job))
            fresh.rename(new)
    except OSError as error:
        raise UsageError(f"{new}: cannot be written ({error.strerror or error}); choose another") from None


def _components(job: _Job) -> set[str]:
    return {path.partition(".")[0] for path in job.shapes}


def _component_files(folder: Path, job: _Job) -> Iterator[tuple[Path, dict[str, Module]]]:
    """Weight files of the components that the adapters change (shards and variants alike)."""
    for component in sorted(_components(job)):
        modules = {place.key: place.module for place in folder_places(component, job.shapes)}
        for file in sorted((folder / component).glob(f"*{_WEIGHTS}")):
            yield file, modules


def _folded_names(old: Path, folder: str, names: list[str], job: _Job) -> set[str]:
    """Files that are written anew instead of copied."""
    place = Path(folder)
    if place.parent != old or place.name not in _components(job):
        return set()
    return {name for name in names if name.endswith(_WEIGHTS)}


def _in_folder(folder: Path, job: _Job) -> set[str]:
    """Layers whose weights the folder has."""
    there: set[str] = set()
    for file, modules in _component_files(folder, job):
        with Source(file, LIMITS) as source:
            touched = _touched(job, modules, source)
            there |= {piece.path for module in touched.values() for piece in module.pieces}
    return there
