"""Strings in the header of a safetensors file, changed without touching a tensor's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from loracomp.formats.source import Source
from loracomp.formats.writing import header_bytes, write_atomically

CHUNK = 1 << 20


def with_strings(path: Path, strings: Mapping[str, str]) -> None:
    """Adds strings to a file's header, or replaces them; the tensors stay byte for byte.

    Raises:
        FormatError: It is no safetensors file.
        UsageError: It cannot be written.
    """
    with Source(path) as file:
        entries = sorted(file.tensors.items(), key=lambda item: item[1].begin)
        metadata = {**file.metadata, **strings}
        first = min((info.begin for _, info in entries), default=path.stat().st_size)
        table = [(name, info.dtype, tuple(info.shape)) for name, info in entries]

    def chunks() -> Iterator[bytes]:
        yield header_bytes(table, metadata)
        with path.open("rb") as data:
            data.seek(first)
            while part := data.read(CHUNK):
                yield part

    write_atomically(path, chunks())
