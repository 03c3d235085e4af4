"""An open LoRA file whose layers are read when asked for, for work that goes layer by layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from loracomp.formats.gate import DEFAULT_LIMITS, Limits
from loracomp.formats.matching import Found, match
from loracomp.formats.native import Table
from loracomp.formats.pieces import split
from loracomp.formats.reading import RANK, TOLERANCE, coarse, partial_load, unusable
from loracomp.formats.scales import stated
from loracomp.formats.source import Source
from loracomp.formats.updates import NEEDS_WEIGHTS, UnusableError, low_rank, read
from loracomp.lowrank import LowRank, zero


class LayerFile:
    """What :func:`loracomp.formats.load` gives, with one module of the file in memory at a time.

    Attributes:
        base: Name of the base it was made for.
        name: The file's name without its ending.
        metadata: The header's strings.

    Args:
        path: A ``.safetensors`` file.
        base: The base it must be made for; recognised where None.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.
        limits: What the gate for untrusted files lets through.

    Raises:
        BaseMismatchError: It was made for another base than ``base``.
        PartialLoadError: Some tensors have no place in the base.
        FormatError: The file is missing, damaged, unsafe or no LoRA; on access, NaN or infinite values.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        base: str | None = None,
        modules: Table | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._source = Source(path, limits)
        try:
            matched = match(self._source, base, modules)
            blocked = dict(matched.unmatched)
            blocked |= {
                item.keys["magnitude"]: NEEDS_WEIGHTS for item in matched.found if "magnitude" in item.keys
            }
            if blocked:
                raise partial_load(self._source, matched, blocked)
            self.base = matched.place.base
            self.name = Path(path).stem
            self.metadata: Mapping[str, str] = dict(self._source.metadata)
            self._layers = _Layers(self._source, matched.found, matched.place.table)
        except BaseException:
            self.close()
            raise

    @property
    def layers(self) -> Mapping[str, LowRank]:
        """Updates by module path, sorted, read on access and checked for NaN then."""
        return self._layers

    def size(self, path: str) -> tuple[tuple[int, ...], int]:
        """Weight shape and rank of a layer; from the header alone where that says it."""
        return self._layers.size(path)

    def close(self) -> None:
        """Closes the file; its layers cannot be read any more."""
        self._source.__exit__(None, None, None)

    def __enter__(self) -> LayerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Layers(Mapping[str, LowRank]):
    """Updates by module path; the module that was read last stays in memory."""

    def __init__(self, source: Source, found: tuple[Found, ...], table: Table) -> None:
        self._source, self._table = source, table
        self._says = stated(source.metadata, source.path)
        self._items = {piece.path: item for item in found for piece in item.module.pieces}
        self._paths = sorted(self._items)
        self._last: tuple[Found, dict[str, LowRank]] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path: object) -> bool:
        return path in self._items  # the inherited one would read the layer

    def size(self, path: str) -> tuple[tuple[int, ...], int]:
        item = self._items[path]
        plain = item.algebra == "lora" and len(item.module.pieces) == 1
        return self._table[path], item.rank if plain else self[path].rank

    def __getitem__(self, path: str) -> LowRank:
        item = self._items[path]
        if self._last is None or self._last[0] is not item:
            self._last = item, split(self._read(item), item.module)
        # A fused module that changes some of its layers only leaves the others as they are.
        return self._last[1].get(path) or zero(self._table[path])

    def _read(self, item: Found) -> LowRank:
        try:
            layer, missed = low_rank(item, read(self._source, item, self._says), RANK)
        except UnusableError as error:
            raise unusable(self._source, error) from None
        if missed > TOLERANCE:
            raise coarse(self._source, {item.name: missed}, RANK)
        return layer
