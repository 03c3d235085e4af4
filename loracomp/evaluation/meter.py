"""Time and peak memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Cost:
    """What the work took.

    Attributes:
        seconds: Wall time.
        peak: Most bytes in use at once: of the GPU's allocator, or of the whole process on Linux; None
            where the system does not tell.
    """

    seconds: float = 0.0
    peak: int | None = None


@contextmanager
def measured(device: str) -> Iterator[Cost]:
    """Measures what happens inside; the result is there at the end.

    Args:
        device: Where the work runs; a GPU is waited for.
    """
    cost, gpu = Cost(), device.startswith("cuda")
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    known = gpu or _reset()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if gpu:
            torch.cuda.synchronize()
        cost.seconds = time.perf_counter() - start
        if known:
            cost.peak = torch.cuda.max_memory_allocated() if gpu else _high_water()


def _reset() -> bool:
    """Sets the process's high-water mark back to what it uses now; False where that cannot be done."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
