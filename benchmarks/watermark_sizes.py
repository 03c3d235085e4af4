"""How much the benchmark of marked LoRAs measures: in full, and as a trial of whether it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int = 60
    unmarked: int = 5000
    keys: int = 200
    seeds: tuple[int, ...] = (0, 1, 2)
    bits: tuple[int, ...] = (32, 16, 48)
    steps: int | None = None
    mark: int = 600
    codec: float = 1.0


SMALL = Size(5, 110, 4, (0,), (32,), 1, 2, 0.0)
