"""An open safetensors file: the checked header, and tensors read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
        return self._read(info.begin, info.end).view(info.dtype).reshape(info.shape)

    def _read(self, begin: int, end: int) -> Tensor:
        raw = torch.empty(end - begin, dtype=torch.uint8)
        window, done = memoryview(raw.numpy().data), 0
        while done < len(window):
            count = os.preadv(self._handle, [window[done:]], begin + done)
            if count == 0:
                raise FormatError(f"{self.label}: became shorter while it was read; read it again")
            done += count
        return raw

    def scalar(self, key: str) -> float:
        """The only value of the tensor ``key``; raises :class:`FormatError` if it has none or several."""
        value = self.tensor(key)
        if value.numel() != 1:
            shape = tuple(value.shape)
            what = f"{printable(key)!r} must be one number but has the shape {shape}"
            raise FormatError(f"{self.label}: {what}; save it again")
        return float(value)

    def bytes(self, chunk: int = 1 << 20) -> Iterator[tuple[memoryview, bool]]:
        """All bytes in chunks, each with whether it is tensor data; a chunk is valid until the next."""
        begin, size = self.header.data_begin, self.header.size
        for start, stop, data in ((0, begin, False), (begin, size, True)):
            for position in range(start, stop, chunk):
                yield memoryview(self._read(position, min(position + chunk, stop)).numpy().data), data
