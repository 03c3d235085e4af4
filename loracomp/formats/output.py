"""The tensors of a file that is being written: checked, hashed and brought to the disk on the way."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.formats.health import finite

_WAITING = 8
_SYNC_BYTES = 1 << 26
# Where the system has none, waiting for the file's times as well does no harm.
_to_disk = getattr(os, "fdatasync", os.fsync)


class Output:
    """Writes tensors at their places while the caller makes the next ones.

    Writing, hashing and waiting for the disk each have a thread: none of them holds the interpreter. The hash
    takes what comes in the order of the file from memory, and reads the rest back at the end. What is
    written goes to the disk at once, so that closing the file need not wait for all of it.

    Args:
        handle: Descriptor of the file, open for reading and writing, longer than this object in use.
        places: Where each tensor begins, by name; all bytes from the first to the last are tensors'.
        name: Who is to blame for values that are not finite.
    """

    def __init__(self, handle: int, places: Mapping[str, int], name: str) -> None:
        self._handle, self._places, self._name = handle, places, name
        self._state, self._hashed = hashlib.sha256(), min(places.values(), default=0)
        self._waiting: deque[Future[None]] = deque()
        self._writing, self._hashing, self._syncing = (ThreadPoolExecutor(1) for _ in range(3))
        self._sync: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (self._writing, self._hashing, self._syncing):
            worker.shutdown(cancel_futures=kind is not None)

    def put(self, key: str, values: Tensor) -> None:
        """Takes in a contiguous tensor on the processor, which must not change any more.

        Raises:
            UsageError: An earlier tensor holds NaN or infinite values.
            OSError: An earlier tensor cannot be written.
        """
        raw = memoryview(values.flatten().view(torch.uint8).numpy().data)
        place = self._places[key]
        self._waiting.append(self._writing.submit(self._write, key, values, raw, place))
        self._waiting.append(self._hashing.submit(self._hash, raw, place))
        while len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def content_hash(self) -> str:
        """SHA-256 of all tensor bytes, hexadecimal, once all are written."""
        while self._waiting:
            self._waiting.popleft().result()
        for part in read(self._handle, self._hashed):
            self._hash(memoryview(part), self._hashed)
        return self._state.hexdigest()

    def _write(self, key: str, values: Tensor, raw: memoryview, place: int) -> None:
        if not finite(values):
            what = f"the tensor {key!r} does not fit into {values.dtype}"
            raise UsageError(f"{self._name}: {what}; mend it or use float32")
        done = 0
        while done < len(raw):
            done += os.pwrite(self._handle, raw[done:], place + done)
        self._unsynced += done
        if self._unsynced >= _SYNC_BYTES and (self._sync is None or self._sync.done()):
            self._sync, self._unsynced = self._syncing.submit(_to_disk, self._handle), 0

    def _hash(self, raw: memoryview, place: int) -> None:
        if place == self._hashed:
            self._state.update(raw)
            self._hashed += len(raw)


def read(handle: int, begin: int, chunk: int = 1 << 22) -> Iterator[bytes]:
    """The bytes of an open file from ``begin`` on, in chunks."""
    while part := os.pread(handle, chunk, begin):
        yield part
        begin += len(part)
