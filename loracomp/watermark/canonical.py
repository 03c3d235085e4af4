"""JSON with one spelling per value, and the digest of a LoRA's tensors."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch

from loracomp.formats.source import Source


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8. Numbers are integers: decimals are written as text.

    Raises:
        ValueError: There is a float in it, which two programs may spell differently.
    """
    _no_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decimal(value: float) -> str:
    """A number as manifests write it: the shortest text that reads back as the same number."""
    return repr(float(value))


def _no_floats(value: Any) -> None:
    if isinstance(value, float):
        raise ValueError("manifests hold decimals as text")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_floats(item)


def tensor_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of a file's tensors, sorted by name.

    The header does not count, since the signature of this digest lies in it.

    Raises:
        FormatError: The file is no safetensors file, or damaged.
    """
    state = hashlib.sha256()
    with Source(path) as file:
        for name in sorted(file.tensors):
            tensor = file.tensor(name)
            state.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
            state.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
