"""Writing a LoRA file layer by layer, for adapters that need not fit into memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.errors import UsageError
from loracomp.formats.dialects import DIALECTS
from loracomp.formats.hashing import legacy_hash
from loracomp.formats.health import finite
from loracomp.formats.metadata import HASH_KEYS, describe, with_hashes
from loracomp.formats.names import Layout, kohya_names, layout
from loracomp.formats.writing import default_dialect, header_bytes, replacing
from loracomp.lowrank import LowRank

_CHUNK = 1 << 26
Entry = tuple[str, torch.dtype, tuple[int, ...]]


def save_layers(
    ranks: Mapping[str, tuple[tuple[int, ...], int]],
    make: Callable[[str], LowRank],
    path: str | os.PathLike[str],
    *,
    base: str,
    name: str,
    dtype: torch.dtype = torch.float32,
    dialect: str = "auto",
    metadata: Callable[[], Mapping[str, str]] = dict,
) -> Path:
    """Writes the layers that ``make`` gives one after another; the file appears whole or not at all.

    Strength is part of the factors and the header says alpha = rank, since a common alpha would be
    known at the end only.

    Args:
        ranks: Weight shape and rank of each layer, by module path.
        make: The update of a layer, alpha None, called once for each.
        path: The file; an existing one is replaced in one step.
        base: The base that the layers belong to.
        name: What users call the adapter.
        dtype: Type of the factors.
        dialect: A name in :data:`DIALECTS`, or "auto" for the one that suits the base.
        metadata: Header strings, asked for after the last layer; the values must have the same lengths
            when asked for before the first.

    Raises:
        UsageError: The path cannot be written, a value does not fit ``dtype``, or the dialect fuses
            layers (:func:`can_stream` says so beforehand).
    """
    target = Path(path)
    kind = default_dialect(base) if dialect == "auto" else dialect
    place = layout(base, None if base in BASES else {path: shape for path, (shape, _) in ranks.items()})
    chunks = list(_chunks(ranks, dtype))
    table = [entry for paths in chunks for entry in _planned(paths, ranks, kind, place, dtype)]
    table.sort()
    strings = _strings(ranks, base, name, kind, metadata())
    blank = with_hashes(strings, "0" * 64, "0" * 8)
    begin = len(header_bytes(table, blank))
    places = _places(table, begin)
    with replacing(target) as file:
        for paths in chunks:
            part = Adapter({path: make(path) for path in paths}, base, name)
            for key, values in _factors(part, kind, place).items():
                file.seek(places[key])
                file.write(_bytes(key, values, dtype, name))
        file.flush()
        strings = _strings(ranks, base, name, kind, metadata())
        final = with_hashes(
            strings, _hashed(file.fileno(), begin), _legacy(file.fileno(), begin, table, strings)
        )
        header = header_bytes(table, final)
        if len(header) != begin:
            raise ValueError("metadata that change their length while the file is written")
        file.seek(0)
        file.write(header)
    return target


def can_stream(ranks: Mapping[str, object], base: str, dialect: str = "auto") -> bool:
    """Whether each layer has tensors of its own in a dialect, so that they can be written one by one."""
    kind = default_dialect(base) if dialect == "auto" else dialect
    if kind != "kohya" or base not in BASES:
        return kind in DIALECTS
    modules = [module for _, module in kohya_names(layout(base))]
    return not any(len(m.pieces) > 1 and any(p.path in ranks for p in m.pieces) for m in modules)


def _chunks(ranks: Mapping[str, tuple[tuple[int, ...], int]], dtype: torch.dtype) -> Iterator[list[str]]:
    """Paths whose factors together fill about 64 MiB."""
    paths: list[str] = []
    size = 0
    for path, (shape, rank) in sorted(ranks.items()):
        paths.append(path)
        size += rank * (shape[0] + torch.Size(shape[1:]).numel()) * dtype.itemsize
        if size >= _CHUNK:
            yield paths
            paths, size = [], 0
    if paths:
        yield paths


def _placeholder(shape: tuple[int, ...], rank: int) -> LowRank:
    """A layer of a shape and rank that takes no memory."""
    tail = (1,) * (len(shape) - 2)
    number = torch.zeros(())
    return LowRank(number.expand(rank, *shape[1:]), number.expand(shape[0], rank, *tail))


def _factors(part: Adapter, kind: str, place: Layout) -> dict[str, Tensor]:
    """Named factors of some layers; no alphas, which only all layers together decide."""
    tensors = DIALECTS[kind](part, place)
    return {key: values for key, values in tensors.items() if not key.endswith(".alpha")}


def _planned(
    paths: Sequence[str],
    ranks: Mapping[str, tuple[tuple[int, ...], int]],
    kind: str,
    place: Layout,
    dtype: torch.dtype,
) -> Iterator[Entry]:
    part = Adapter({path: _placeholder(*ranks[path]) for path in paths}, place.base)
    for key, values in _factors(part, kind, place).items():
        yield key, dtype, tuple(values.shape)


def _places(table: Sequence[Entry], begin: int) -> dict[str, int]:
    """Where each tensor begins in the file."""
    places = {}
    for key, dtype, shape in table:
        places[key] = begin
        begin += torch.Size(shape).numel() * dtype.itemsize
    return places


def _strings(
    ranks: Mapping[str, tuple[tuple[int, ...], int]],
    base: str,
    name: str,
    kind: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    whole = Adapter({path: _placeholder(*size) for path, size in ranks.items()}, base, name, extra)
    return {k: v for k, v in describe(whole, kind, True).items() if k not in HASH_KEYS}


def _bytes(key: str, values: Tensor, dtype: torch.dtype, name: str) -> memoryview:
    rounded = values.detach().to("cpu", dtype).contiguous().flatten()
    if not finite(rounded):
        raise UsageError(f"{name}: the tensor {key!r} does not fit into {dtype}; mend it or use float32")
    return memoryview(rounded.view(torch.uint8).numpy().data)


def _read(handle: int, begin: int, chunk: int = 1 << 22) -> Iterator[bytes]:
    while part := os.pread(handle, chunk, begin):
        yield part
        begin += len(part)


def _hashed(handle: int, begin: int) -> str:
    state = hashlib.sha256()
    for part in _read(handle, begin):
        state.update(part)
    return state.hexdigest()


def _legacy(handle: int, begin: int, table: Sequence[Entry], strings: Mapping[str, str]) -> str:
    """The old web UI's hash, which is taken of a file whose header has the training metadata alone."""

    def chunks() -> Iterator[bytes]:
        yield header_bytes(table, {key: value for key, value in strings.items() if key.startswith("ss_")})
        yield from _read(handle, begin)

    return legacy_hash(chunks())
