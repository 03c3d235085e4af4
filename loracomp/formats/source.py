"""An open safetensors file: the checked header, and tensors read one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import FormatError
from loracomp.formats.gate import (
    DEFAULT_LIMITS,
    Header,
    Limits,
    TensorInfo,
    open_file,
    printable,
    read_header,
)

_AHEAD = 4096


class Source:
    """A file that passed the gate; checks and data use one descriptor, so nobody swaps the file between.

    Args:
        path: The file.
        limits: What the gate lets through.

    Raises:
        FormatError: The gate refuses the file.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = Path(path)
        self.label = printable(os.fspath(path), 200)
        self.limits = limits
        self._handle, size = open_file(path, limits)
        self._hash: Any = None  # hashlib does not name the type of its hashes
        self._hashed = 0
        self._scratch: dict[str, tuple[Tensor, memoryview]] = {}
        self._ahead, self._ahead_begin = b"", 0
        try:
            self.header: Header = read_header(self._handle, size, self.label, limits)
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Header entries in file order."""
        return self.header.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """The header's strings."""
        return self.header.metadata

    def tensor(self, key: str, scratch: str = "") -> Tensor:
        """The tensor ``key``, read into memory of its own.

        With ``scratch``, into memory that the next tensor with the same scratch name overwrites.
        """
        info = self.tensors[key]
        size = info.end - info.begin
        raw, window = self._memory(size, scratch)
        self._fill(window, info.begin)
        if self._hash is not None and info.begin >= self._hashed:
            self._hash_until(info.begin)
            self._hash.update(window)
            self._hashed = info.end
        return raw.view(info.dtype).view(info.shape)

    def content(self) -> Tensor:
        """All tensor bytes in one read, uint8; byte 0 is the file's ``header.data_begin``."""
        raw = torch.empty(self.header.size - self.header.data_begin, dtype=torch.uint8)
        self._fill(memoryview(raw.numpy().data), self.header.data_begin)
        return raw

    def _memory(self, size: int, scratch: str) -> tuple[Tensor, memoryview]:
        """``size`` bytes, new ones or those of a scratch name, as a tensor and as a window for reading."""
        held = self._scratch.get(scratch) if scratch else None
        if held is None or len(held[1]) < size:
            raw = torch.empty(size, dtype=torch.uint8)
            held = raw, memoryview(raw.numpy().data)
        if scratch:
            self._scratch[scratch] = held
        return held if len(held[1]) == size else (held[0].narrow(0, 0, size), held[1][:size])

    def start_hash(self) -> None:
        """From here on, tensors that are read in file order are hashed on the way."""
        self._hash, self._hashed = hashlib.sha256(), self.header.data_begin

    def content_hash(self) -> str:
        """SHA-256 of all tensor bytes, hexadecimal; only what was not read since the start is read now."""
        if self._hash is None:
            self.start_hash()
        self._hash_until(self.header.size)
        return self._hash.hexdigest() if self._hash else ""

    def _hash_until(self, end: int, chunk: int = 1 << 20) -> None:
        buffer = memoryview(bytearray(min(chunk, max(end - self._hashed, 0))))
        while self._hash is not None and self._hashed < end:
            window = buffer[: end - self._hashed]
            self._fill(window, self._hashed)
            self._hash.update(window)
            self._hashed += len(window)

    def _fill(self, window: memoryview, begin: int) -> None:
        """Fills a window with the file's bytes from ``begin`` on."""
        done = 0
        while done < len(window):
            count = os.preadv(self._handle, [window[done:]], begin + done)
            if count == 0:
                raise FormatError(f"{self.label}: became shorter while it was read; read it again")
            done += count

    def scalar(self, key: str) -> float:
        """The only value of the tensor ``key``; raises :class:`FormatError` if it has none or several."""
        info = self.tensors[key]
        if prod(info.shape) != 1:
            what = f"{printable(key)!r} must be one number but has the shape {info.shape}"
            raise FormatError(f"{self.label}: {what}; save it again")
        raw = bytearray(self._small(info.begin, info.end))
        return float(torch.frombuffer(raw, dtype=info.dtype, count=1))

    def _small(self, begin: int, end: int) -> bytes:
        """A few bytes of the file; those that follow are read with them, for they are often wanted next."""
        start = begin - self._ahead_begin
        if start < 0 or end - self._ahead_begin > len(self._ahead):
            block = bytearray(min(_AHEAD, self.header.size - begin))
            self._fill(memoryview(block), begin)
            self._ahead, self._ahead_begin, start = bytes(block), begin, 0
        return self._ahead[start : start + end - begin]

    def file_hash(self, chunk: int = 1 << 20) -> str:
        """SHA-256 of the whole file, hexadecimal."""
        state, size = hashlib.sha256(), self.header.size
        buffer = memoryview(bytearray(min(chunk, size)))
        for begin in range(0, size, chunk):
            window = buffer[: min(chunk, size - begin)]
            self._fill(window, begin)
            state.update(window)
        return state.hexdigest()
