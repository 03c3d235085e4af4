"""The gate for untrusted files: a safetensors header is checked before anything trusts it.

Nothing here allocates memory in proportion to a size that a file claims: the header's length is held
against the file's real size and a cap, the header's structure is counted before it is parsed, and
each tensor's extent must equal shape times item size and touch its neighbours without gap or overlap
(the format's own rule, https://github.com/huggingface/safetensors#format). Pickles are never opened.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from loracomp.errors import FormatError
from loracomp.formats import tables
from loracomp.formats.sniff import explain
from loracomp.formats.tables import TensorInfo

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_HUGE = 1 << 63
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True)
class Limits:
    """What the gate lets through.

    Attributes:
        file_bytes: Largest file.
        header_bytes: Largest header (the format itself allows 100 MB).
        tensors: Most tensors.
        key_chars: Longest tensor name.
        metadata_entries: Most metadata strings.
        axes: Most axes of a tensor.
        rank: Largest rank of a layer.
    """

    file_bytes: int = 8 << 30
    header_bytes: int = 8 << 20
    tensors: int = 20_000
    key_chars: int = 512
    metadata_entries: int = 4096
    axes: int = 8
    rank: int = 4096


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        table: Tensors in file order, offsets from the start of the data.
        metadata: The header's strings.
        data_begin: Where the data begin, in bytes.
        size: Size of the file in bytes.
        layout: A digest that two files share only where they hold tensors of the same names, dtypes and
            shapes in the same order.
    """

    table: tables.Table
    metadata: Mapping[str, str]
    data_begin: int
    size: int
    layout: str

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors in file order, offsets from the start of the file."""
        return tables.moved(self.table, self.data_begin)


def printable(text: str, limit: int = 96) -> str:
    """``text`` on one line without control characters, shortened to ``limit`` characters."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return safe if len(text) <= limit else f"{safe[: limit - 1]}…"


def open_file(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """File descriptor and size in bytes of a regular file; all later reads use this descriptor.

    Raises:
        FormatError: Missing, unreadable, not a regular file, empty, or larger than the limit.
    """
    name = printable(os.fspath(path), 200)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FormatError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{name}: cannot be read ({reason}); check path and permissions") from None
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{name}: is a folder; give the .safetensors file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{name}: is not a regular file; give a .safetensors file")
        if status.st_size == 0:
            raise FormatError(f"{name}: is empty; download or save it again")
        if status.st_size > limits.file_bytes:
            size = f"{status.st_size} bytes, more than the limit of {limits.file_bytes}"
            raise FormatError(f"{name}: is too large for a LoRA ({size}); raise the limit if you trust it")
    except FormatError:
        os.close(handle)
        raise
    return handle, status.st_size


def read_header(handle: int, size: int, name: str, limits: Limits = DEFAULT_LIMITS) -> Header:
    """The checked header of an open safetensors file.

    Args:
        handle: File descriptor.
        size: Size of the file in bytes.
        name: The file's name for messages.
        limits: What is let through.

    Raises:
        FormatError: One line that says what is wrong and what to do.
    """
    start = os.pread(handle, 512, 0)
    if reason := explain(start):
        raise FormatError(f"{name}: {reason}")
    if size < 8:
        raise _damaged(name, f"has {size} bytes, too few for a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise _damaged(
            name, f"claims a header of {length} bytes in a file of {size}; truncated or not safetensors"
        )
    if length > limits.header_bytes:
        raise _damaged(name, f"has a header of {length} bytes, more than the limit of {limits.header_bytes}")
    raw = os.pread(handle, length, 8)
    if len(raw) != length:
        raise _damaged(name, "ended while its header was read")
    said, layout = tables.split(raw)
    begin = 8 + length
    known = tables.KNOWN.get((layout, limits))
    # A file of another size goes the long way, which says what is wrong with it.
    if known and begin + known[-1][1].end == size:
        metadata = tables.metadata(said, limits.metadata_entries)
        if metadata is not None:
            return Header(known, metadata, begin, size, layout)
    parsed = _parsed(raw, name, limits)
    apart = said is not None or "__metadata__" not in parsed
    header = Header(*_checked(parsed, begin, size, name, limits), begin, size, layout)
    if apart:
        tables.KNOWN.put((layout, limits), header.table, len(header.table))
    return header


def _damaged(name: str, what: str) -> FormatError:
    return FormatError(f"{name}: {what}; download or save it again")


def _parsed(raw: bytes, name: str, limits: Limits) -> dict[str, Any]:
    """The header's JSON as a dictionary, structure bounded first, duplicate keys refused."""
    if _crowded(raw, limits):
        raise _damaged(name, f"has a header with more entries than {limits.tensors} tensors need")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise _damaged(name, f"has the key {printable(twice)!r} twice in its header")
        return table

    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _damaged(name, "has a header that is not UTF-8 text; it is no safetensors file") from None
    except (ValueError, RecursionError):
        raise _damaged(name, "has a header that is not valid JSON; it is no safetensors file") from None
    if not isinstance(table, dict):
        raise _damaged(name, "has a header that is not a JSON object")
    return table


def _crowded(raw: bytes, limits: Limits) -> bool:
    """Whether a header has more strings, braces or commas than the allowed tensors and metadata need.

    A tensor takes five strings, two brackets and a brace, and a comma for each axis and field.
    """
    strings = 5 * limits.tensors + 2 * limits.metadata_entries + 2
    if raw.count(b'"') - raw.count(b'\\"') > 2 * strings:
        return True
    skeleton = tables.STRINGS.sub(b"", raw)
    fields = 4 * limits.tensors + limits.metadata_entries + 2
    return (
        skeleton.count(b"[") + skeleton.count(b"{") > 3 * limits.tensors + 2
        or skeleton.count(b":") > fields
        or skeleton.count(b",") > fields + limits.axes * limits.tensors
    )


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _checked(
    table: dict[str, Any], begin: int, size: int, name: str, limits: Limits
) -> tuple[tables.Table, dict[str, str]]:
    """The table and the metadata of a parsed header."""
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(name, "has metadata that are not strings")
    if len(metadata) > limits.metadata_entries:
        raise _damaged(name, f"has {len(metadata)} metadata entries, more than {limits.metadata_entries}")
    if len(table) > limits.tensors:
        raise _damaged(name, f"has {len(table)} tensors, more than the limit of {limits.tensors}")
    if not table:
        raise FormatError(f"{name}: holds no tensors; choose another file")
    found = [(key, _tensor(key, entry, name, limits)) for key, entry in table.items()]
    found.sort(key=lambda item: (item[1].begin, item[1].end))
    position = 0
    for key, info in found:
        if info.begin != position:
            kind = "overlaps" if info.begin < position else "leaves a gap after"
            raise _damaged(name, f"has the tensor {printable(key)!r}, which {kind} the one before it")
        position = info.end
    if begin + position != size:
        what = (
            f"ends {begin + position - size} bytes too early"
            if begin + position > size
            else "has bytes after its last tensor"
        )
        raise _damaged(name, what)
    return tuple(found), metadata


def _tensor(key: str, entry: Any, name: str, limits: Limits) -> TensorInfo:
    if len(key) > limits.key_chars or not key.isprintable():
        raise _damaged(name, f"has a tensor with the unusable name {printable(key)!r}")
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise _damaged(name, f"has an incomplete entry for the tensor {printable(key)!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        what = f"tensor {printable(key)!r} has the dtype {printable(str(dtype))}"
        raise FormatError(f"{name}: {what}; save it as F16 or F32")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > limits.axes:
        raise _damaged(name, f"has an impossible shape or position for the tensor {printable(key)!r}")
    extent = prod(shape) * DTYPES[dtype].itemsize
    if (extent or prod(max(side, 1) for side in shape)) >= _HUGE:
        # An empty tensor may claim any other sides; torch multiplies them in 64 bits.
        raise _damaged(name, f"has an impossible shape for the tensor {printable(key)!r}")
    if offsets[1] - offsets[0] != extent:
        given = offsets[1] - offsets[0]
        raise _damaged(
            name, f"gives the tensor {printable(key)!r} {given} bytes where its shape needs {extent}"
        )
    return TensorInfo(DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _sizes(values: Any) -> bool:
    # Not isinstance: bool, which JSON's true becomes, is an int.
    # A loop, because a generator takes three times as long and a file has thousands of these lists.
    for value in values if isinstance(values, list) else (None,):
        if type(value) is not int or not 0 <= value < _HUGE:
            return False
    return True
