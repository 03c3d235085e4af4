"""Tensor tables that were checked before: files of one trainer differ in metadata and values alone.

A folder of adapters for one base repeats a few tables thousands of times, and checking one costs more
than reading the values of a small file. A table is known again by the bytes of its header after the
metadata, so nothing is taken over that was not checked, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from itertools import islice
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import torch

_Value = TypeVar("_Value")
# Possessive: a string of millions of escapes must not pile up places to come back to.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
STRINGS = re.compile(_STRING, re.DOTALL)
# Metadata as every writer puts them: first, compact, nothing but strings, and a tensor after them.
_METADATA = re.compile(rb'\{"__metadata__":(\{(?:%b:%b,?+)*+\}),' % (_STRING, _STRING), re.DOTALL)
MOST = 20_000
"""Tensors that are remembered: some sixty tables of small adapters, eight of SDXL's."""


class TensorInfo(NamedTuple):
    """Where a tensor lies: dtype, shape, and its bytes as offsets from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


Table = tuple[tuple[str, TensorInfo], ...]


class Recent(Generic[_Value]):
    """The latest values of a few keys, for any number of threads.

    Args:
        budget: Sum of the weights that are kept; heavier values are not kept at all.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._sum = budget, 0
        self._kept: dict[Hashable, tuple[_Value, int]] = {}
        self._lock = Lock()

    def get(self, key: Hashable) -> _Value | None:
        """The value of a key, which counts as used now; None where it is not kept."""
        with self._lock:
            held = self._kept.pop(key, None)
            if held is None:
                return None
            self._kept[key] = held
            return held[0]

    def put(self, key: Hashable, value: _Value, weight: int) -> None:
        """Keeps a value; what was not used for longest goes."""
        with self._lock:
            self._sum -= self._kept.pop(key, (None, 0))[1]
            if weight > self._budget:
                return
            while self._sum + weight > self._budget:
                self._sum -= self._kept.pop(next(iter(self._kept)))[1]
            self._kept[key] = value, weight
            self._sum += weight

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self._sum = 0


KNOWN: Recent[Table] = Recent(MOST)
"""Checked tables by layout and limits, their offsets from the start of the data."""


def split(raw: bytes) -> tuple[bytes | None, str]:
    """A header's metadata as JSON, and its layout: a digest of the header without them.

    Metadata that do not come first, or are more than strings, are None and stay part of the layout.
    """
    found = _METADATA.match(raw)
    rest = b"{" + raw[found.end() :] if found else raw
    return (found[1] if found else None), hashlib.sha256(rest.rstrip(b" ")).hexdigest()


def metadata(raw: bytes | None, most: int) -> dict[str, str] | None:
    """Metadata of a header whose table is known; None where they need the full check.

    Args:
        raw: What :func:`split` found.
        most: Entries that are let through.
    """
    if raw is None:
        return {}
    if sum(1 for _ in islice(STRINGS.finditer(raw), 2 * most + 1)) > 2 * most:
        return None
    try:
        pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=list)
    except ValueError:
        return None
    said = dict(pairs)
    return said if len(said) == len(pairs) else None


def moved(table: Table, begin: int) -> Mapping[str, TensorInfo]:
    """A table whose offsets are ``begin`` bytes larger."""
    return {
        key: TensorInfo(info.dtype, info.shape, info.begin + begin, info.end + begin) for key, info in table
    }
