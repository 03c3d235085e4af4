"""An open safetensors file: the checked header, and tensors as views of the mapped file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

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
        try:
            self.header: Header = read_header(self._handle, size, self.label, limits)
            # A private mapping: torch wants writable memory, and nothing written ever reaches the file.
            self._map = mmap.mmap(self._handle, size, access=mmap.ACCESS_COPY)
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

    def view(self, key: str) -> Tensor:
        """The tensor ``key``, sharing memory with the mapped file for as long as the view lives."""
        info = self.tensors[key]
        count = (info.end - info.begin) // info.dtype.itemsize
        if count == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        if info.begin % info.dtype.itemsize:
            raw = bytearray(self._map[info.begin : info.end])
            return torch.frombuffer(raw, dtype=info.dtype).reshape(info.shape)
        return torch.frombuffer(self._map, dtype=info.dtype, count=count, offset=info.begin).reshape(
            info.shape
        )

    def tensor(self, key: str) -> Tensor:
        """A copy of the tensor ``key`` in memory of its own."""
        return self.view(key).clone()

    def scalar(self, key: str) -> float:
        """The only value of the tensor ``key``; raises :class:`FormatError` if it has none or several."""
        value = self.view(key)
        if value.numel() != 1:
            shape = tuple(value.shape)
            what = f"{printable(key)!r} must be one number but has the shape {shape}"
            raise FormatError(f"{self.label}: {what}; save it again")
        return float(value)

    def front(self) -> memoryview:
        """The bytes of the header, with its length in front."""
        return memoryview(self._map)[: self.header.data_begin]

    def data(self) -> memoryview:
        """The bytes behind the header."""
        return memoryview(self._map)[self.header.data_begin :]
