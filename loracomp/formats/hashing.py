"""Hashes by which the community names a LoRA file.

AutoV2 is the start of the SHA-256 of the whole file; AutoV3 that of the tensor bytes alone, so it
survives edits of the header. Legacy is the old web-UI hash of 64 KiB at 1 MiB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from loracomp.formats.gate import DEFAULT_LIMITS, Limits
from loracomp.formats.source import Source

_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def hashes(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> dict[str, str]:
    """Hashes of a LoRA file: ``sha256``, ``autov2``, ``autov3`` and ``sshs_model_hash``.

    ``sshs_model_hash`` is recomputed from the tensors, whatever the header claims.

    Raises:
        FormatError: The gate refuses the file.
    """
    with Source(path, limits) as source:
        return source_hashes(source)


def source_hashes(source: Source, *, whole: bool = True) -> dict[str, str]:
    """The same for an open file, those of the tensors alone where ``whole`` is False (half the time)."""
    content = source.content_hash()
    found = {"autov3": content[:12], "sshs_model_hash": content}
    if not whole:
        return found
    file = source.file_hash()
    return {"sha256": file, "autov2": file[:10], **found}


def legacy_hash(chunks: Iterable[bytes]) -> str:
    """The old web UI's hash of a file given as chunks: 8 hexadecimal digits."""
    state, position, end = hashlib.sha256(), 0, _LEGACY_START + _LEGACY_BYTES
    for chunk in chunks:
        low, high = max(_LEGACY_START - position, 0), end - position
        if low < len(chunk) and high > 0:
            state.update(chunk[low:high])
        position += len(chunk)
        if position >= end:
            break
    return state.hexdigest()[:8]
