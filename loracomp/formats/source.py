"""An open safetensors file: the checked header, and tensors read one by one."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
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
    open_file,
    printable,
    read_header,
)
from loracomp.formats.tables import TensorInfo

_AHEAD = 4096
_WIDEST = 64
_PACKED = {torch.float64: "<d", torch.float32: "<f", torch.float16: "<e"}
_Plan = tuple[Tensor, Tensor, list[Tensor]]
"""The values of a run of tensors as they lie in memory, the same in float32, and its parts."""


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
        self._memory, self._wide = memoryview(b""), torch.empty(0)
        self._window, self._window_begin = memoryview(b""), 0
        self._plans: dict[tuple[torch.dtype, tuple[tuple[int, ...], ...]], _Plan] = {}
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

    def tensor(self, key: str) -> Tensor:
        """The tensor ``key``, read into memory of its own."""
        info = self.tensors[key]
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
        self._take(memoryview(raw.numpy().data), info.begin)
        return raw.view(info.dtype).view(info.shape)

    def side_by_side(self, keys: Sequence[str]) -> list[Tensor]:
        """Tensors, given in file order, in memory of their own; those that touch are read in one go."""
        infos = [self.tensors[key] for key in keys]
        if any(one.end != two.begin or one.dtype != two.dtype for one, two in pairwise(infos)):
            return [self.tensor(key) for key in keys]
        begin = infos[0].begin
        raw = torch.empty(infos[-1].end - begin, dtype=torch.uint8)
        self._take(memoryview(raw.numpy().data), begin)
        return [raw[one.begin - begin : one.end - begin].view(one.dtype).view(one.shape) for one in infos]

    def together(self, keys: Sequence[str], along: str = "") -> list[Tensor]:
        """Float32 copies of tensors of fractions, in memory that the next call overwrites.

        What lies side by side, as the factors of a module commonly do, is read, hashed and copied in one
        go: one by one, the calls would take as long as their work. So is the small tensor ``along`` where
        it lies right before, for :meth:`scalar`.

        Args:
            keys: Tensors in file order.
            along: A tensor that is wanted next; none where empty.
        """
        infos = [self.tensors[key] for key in keys]
        begin, end, kind = infos[0].begin, infos[0].end, infos[0].dtype
        for info in infos[1:]:
            end = info.end if info.begin == end and info.dtype is kind else -1
        if end <= begin:
            return [self.tensor(key).float() for key in keys]
        before = self.tensors[along] if along else infos[0]
        close = before.end == begin and begin - before.begin <= _WIDEST
        self._read_along(before.begin if close else begin, begin, end)
        plan = kind, tuple(info.shape for info in infos)
        values, wide, parts = self._plans.get(plan) or self._planned(*plan)
        if wide is not values:
            wide.copy_(values)
        return list(parts)

    def _read_along(self, start: int, begin: int, end: int) -> None:
        """Reads the file from ``start`` to ``end`` such that ``begin`` comes to lie where any type may."""
        size = _WIDEST + end - begin
        if len(self._memory) < size:
            self._plans, self._window = {}, memoryview(b"")
            self._memory = memoryview(torch.empty(size, dtype=torch.uint8).numpy().data)
        self._window, self._window_begin = self._memory[_WIDEST + start - begin : size], start
        self._take(self._window, start)

    def _planned(self, kind: torch.dtype, shapes: tuple[tuple[int, ...], ...]) -> _Plan:
        """Tensors over the memory for a run of shapes; kept, since most modules are like one before."""
        count = sum(map(prod, shapes))
        values = wide = torch.frombuffer(self._memory, dtype=kind, count=count, offset=_WIDEST)
        if kind is not torch.float32:
            if self._wide.numel() < count:
                self._plans, self._wide = {}, torch.empty(count)
            wide = self._wide.narrow(0, 0, count)
        parts = [
            part.view(shape) for part, shape in zip(wide.split([*map(prod, shapes)]), shapes, strict=True)
        ]
        self._plans[kind, shapes] = values, wide, parts
        return values, wide, parts

    def _take(self, window: memoryview, begin: int) -> None:
        """Fills a window, and hashes what it holds where that comes next."""
        self._fill(window, begin)
        if self._hash is not None and begin >= self._hashed:
            self._hash_until(begin)
            self._hash.update(window)
            self._hashed = begin + len(window)

    def content(self) -> Tensor:
        """All tensor bytes in one read, uint8; byte 0 is the file's ``header.data_begin``."""
        raw = torch.empty(self.header.size - self.header.data_begin, dtype=torch.uint8)
        self._fill(memoryview(raw.numpy().data), self.header.data_begin)
        return raw

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
        raw = self._small(info.begin, info.end)
        if packed := _PACKED.get(info.dtype):
            return float(struct.unpack(packed, raw)[0])
        return float(torch.frombuffer(bytearray(raw), dtype=info.dtype, count=1))

    def _small(self, begin: int, end: int) -> bytes:
        """A few bytes of the file; those that follow are read with them, for they are often wanted next."""
        inside = begin - self._window_begin
        if inside >= 0 and end - self._window_begin <= len(self._window):
            return bytes(self._window[inside : inside + end - begin])
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
