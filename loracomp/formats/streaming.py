"""Writing a LoRA file layer by layer, for adapters that need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.errors import UsageError
from loracomp.formats.dialects import DIALECTS
from loracomp.formats.hashing import legacy_hash
from loracomp.formats.metadata import HASH_KEYS, describe, with_hashes
from loracomp.formats.names import Layout, kohya_names, layout
from loracomp.formats.output import Output, read
from loracomp.formats.writing import default_dialect, header_bytes, replacing
from loracomp.lowrank import LowRank

Entry = tuple[str, torch.dtype, tuple[int, ...]]
Key = tuple[str, tuple[int, ...]]
Sizes = Mapping[str, tuple[tuple[int, ...], int]]


def save_layers(
    ranks: Sizes,
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
    keys = _keys(ranks, kind, place)
    table = sorted((key, dtype, shape) for pair in keys.values() for key, shape in pair)
    strings = _strings(ranks, base, name, kind, metadata())
    begin = len(header_bytes(table, with_hashes(strings, "0" * 64, "0" * 8)))
    places = _places(table, begin)
    with replacing(target) as file:
        with Output(file.fileno(), places, name) as out:
            for path in sorted(ranks, key=lambda path: min(places[key] for key, _ in keys[path])):
                layer = make(path)
                for (key, _), values in zip(keys[path], (layer.down, layer.up), strict=True):
                    out.put(key, values.detach().to("cpu", dtype).contiguous())
            content = out.content_hash()
        strings = _strings(ranks, base, name, kind, metadata())
        final = with_hashes(strings, content, _legacy(file.fileno(), begin, table, strings))
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


def _placeholder(shape: tuple[int, ...], rank: int, mark: float = 0.0) -> LowRank:
    """A layer of a shape and rank that takes no memory; down holds ``mark`` alone, up its opposite."""
    tail = (1,) * (len(shape) - 2)
    down, up = torch.tensor(mark), torch.tensor(-mark)
    return LowRank(down.expand(rank, *shape[1:]), up.expand(shape[0], rank, *tail))


def _keys(ranks: Sizes, kind: str, place: Layout) -> dict[str, tuple[Key, Key]]:
    """Names and shapes of the factors (down, up) of each layer in a file.

    The dialect gives the names to placeholders of rank 1, whose values tell whose they are. Where ranks
    differ, dialects that state one alpha for all layers scale factors; those here must stay as they are.
    """
    marked = {path: _placeholder(shape, 1, 1.0 + i) for i, (path, (shape, _)) in enumerate(ranks.items())}
    order, found = list(ranks), dict[tuple[str, bool], Key]()
    for key, values in DIALECTS[kind](Adapter(marked, place.base), place).items():
        if key.endswith(".alpha"):
            continue
        mark = float(values.flatten()[0])
        path, is_up = order[int(abs(mark)) - 1], mark < 0
        rank, sizes = ranks[path][1], tuple(values.shape)
        shape = (sizes[0], rank, *sizes[2:]) if is_up else (rank, *sizes[1:])
        found[path, is_up] = key, shape
    if len(found) != 2 * len(ranks):
        raise UsageError(f"{kind} fuses layers of {place.base}; write the diffusers dialect")
    return {path: (found[path, False], found[path, True]) for path in ranks}


def _places(table: Sequence[Entry], begin: int) -> dict[str, int]:
    """Where each tensor begins in the file."""
    places = {}
    for key, dtype, shape in table:
        places[key] = begin
        begin += torch.Size(shape).numel() * dtype.itemsize
    return places


def _strings(ranks: Sizes, base: str, name: str, kind: str, extra: Mapping[str, str]) -> dict[str, str]:
    whole = Adapter({path: _placeholder(*size) for path, size in ranks.items()}, base, name, extra)
    return {k: v for k, v in describe(whole, kind, True).items() if k not in HASH_KEYS}


def _legacy(handle: int, begin: int, table: Sequence[Entry], strings: Mapping[str, str]) -> str:
    """The old web UI's hash, which is taken of a file whose header has the training metadata alone."""

    def chunks() -> Iterator[bytes]:
        yield header_bytes(table, {key: value for key, value in strings.items() if key.startswith("ss_")})
        yield from read(handle, begin)

    return legacy_hash(chunks())
