"""Writing an :class:`Adapter` as a LoRA file, whole or not at all, and always the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.errors import UsageError
from loracomp.formats.dialects import DIALECTS, states_alpha_in_header
from loracomp.formats.gate import DTYPES, printable
from loracomp.formats.hashing import legacy_hash
from loracomp.formats.health import finite
from loracomp.formats.metadata import HASH_KEYS, describe, with_hashes
from loracomp.formats.names import layout
from loracomp.formats.native import Table
from loracomp.formats.thumbnail import check_given

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    dialect: str = "auto",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    modules: Table | None = None,
) -> Path:
    """Writes a LoRA file; equal adapters make equal bytes.

    Args:
        adapter: What to write.
        path: The file; an existing one is replaced in one step.
        dialect: A name in :data:`DIALECTS`, or "auto" for the one that most tools read at the right
            strength for the adapter's base.
        dtype: Floating-point type of the factors; as they are where None.
        metadata: Header strings in addition to, or instead of, the adapter's own; a picture for
            ``modelspec.thumbnail`` comes from :func:`loracomp.formats.thumbnail`.
        modules: Weight shapes by module path of a pipeline that is none of the known bases.

    Returns:
        The path.

    Raises:
        UsageError: The path cannot be written, the dialect has no name for a layer, or the thumbnail
            among the metadata is no small picture.
        UnknownNameError: No such dialect.
    """
    target = Path(path)
    check_given(metadata or {})
    kind = default_dialect(adapter.base) if dialect == "auto" else dialect
    table = modules if modules is not None or adapter.base in BASES else _shapes(adapter)
    tensors = _converted(DIALECTS[kind](adapter, layout(adapter.base, table)), dtype, adapter.name)
    if not tensors:
        raise UsageError(f"{printable(str(target), 200)}: the adapter {adapter.name} has no layers to write")
    strings = {**describe(adapter, kind, states_alpha_in_header(tensors)), **(metadata or {})}
    write_atomically(target, serialized(tensors, strings))
    return target


def default_dialect(base: str) -> str:
    """The dialect that most tools read at the right strength for a base."""
    return BASES[base].dialect if base in BASES else "diffusers"


def dtype_named(name: str) -> torch.dtype:
    """The dtype that a user means; raises :class:`UsageError` for any but the three of LoRA files."""
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    known |= {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if name not in known:
        raise UsageError(f"unknown dtype {name!r}; use float16, bfloat16 or float32")
    return known[name]


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {path: layer.weight_shape for path, layer in adapter.layers.items()}


def _converted(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    """The factors in ``dtype`` (alpha stays float32, which every consumer reads exactly), checked finite."""
    if dtype is not None and (dtype not in _NAMES or not dtype.is_floating_point):
        raise UsageError(
            f"{dtype} is no floating-point type of safetensors; use float16, bfloat16 or float32"
        )
    out = {key: t if dtype is None or key.endswith(".alpha") else t.to(dtype) for key, t in tensors.items()}
    for key, tensor in out.items():
        if not finite(tensor):
            what = "does not fit into" if finite(tensors[key]) else "is not finite in"
            raise UsageError(
                f"{name}: the tensor {printable(key)!r} {what} {tensor.dtype}; mend it or use float32"
            )
    return out


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a safetensors file, in chunks: sorted, aligned to 8 bytes, hashes in the header."""
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    state = hashlib.sha256()
    for key in order:
        state.update(_raw(tensors[key]))
    plain = {key: value for key, value in metadata.items() if key not in HASH_KEYS}
    trained = {key: value for key, value in plain.items() if key.startswith("ss_")}
    legacy = legacy_hash(_file(tensors, order, trained))
    return _file(tensors, order, with_hashes(plain, state.hexdigest(), legacy))


def _file(tensors: Mapping[str, Tensor], order: list[str], metadata: Mapping[str, str]) -> Iterator[bytes]:
    yield header_bytes([(key, tensors[key].dtype, tuple(tensors[key].shape)) for key in order], metadata)
    for key in order:
        yield _raw(tensors[key])


def header_bytes(
    table: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Length and header of a safetensors file whose tensors (key, dtype, shape) lie in this order."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for key, dtype, shape in table:
        end = position + prod(shape) * dtype.itemsize
        entries[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def write_atomically(target: Path, chunks: Iterable[bytes]) -> None:
    """Puts chunks into a file beside the target, on the disk, and then in the target's place.

    Raises:
        UsageError: The target cannot be written.
    """
    with replacing(target) as file:
        for chunk in chunks:
            file.write(chunk)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file beside the target, open for reading and writing, that takes its place at the end.

    Whatever interrupts the writing, the target stays as it was and nothing is left beside it.

    Raises:
        UsageError: The target cannot be written.
    """
    temporary = None
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name[:80]}.", suffix=".part", dir=target.parent
        )
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _mode(target))
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        _settle(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        name = printable(str(target), 200)
        raise UsageError(f"{name}: cannot be written ({reason}); choose another folder or name") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or what the user's mask grants a new one."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _settle(folder: Path) -> None:
    """Makes the renaming itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
