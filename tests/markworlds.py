"""Simulated extractors: what a real one could do wrong, without training one."""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.watermark.calibration import Calibration, joined
from loracomp.watermark.keys import Key, OwnerKey

DIMENSIONS = 256
SUBJECTS = 100


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unmarked(count: int, seed: int = 0, bias: float = 1.0) -> tuple[Tensor, Tensor]:
    """Coordinates that are biased, correlated with each other, and alike within subjects; their subjects.

    The bias of coordinates and the factors are the extractor's own: the same for every seed.
    """
    own, drawn = source(99), source(seed)
    offset = bias * torch.randn(DIMENSIONS, generator=own)
    factors = torch.randn(4, DIMENSIONS, generator=own)
    looks = torch.randn(SUBJECTS, DIMENSIONS, generator=own)
    subject = torch.randint(SUBJECTS, (count,), generator=drawn)
    noise = torch.randn(count, DIMENSIONS, generator=drawn)
    common = torch.randn(count, 4, generator=drawn) @ factors
    return offset + looks[subject] + common + noise, subject


def marked(count: int, key: Key, strength: float, seed: int = 1) -> Tensor:
    """Unmarked coordinates with a key's direction added, in units of a coordinate's own noise."""
    rows, _ = unmarked(count, seed)
    return rows + strength * DIMENSIONS**0.5 * 0.1 * key.direction(DIMENSIONS).float()


def calibration(count: int = 4000, seed: int = 5) -> Calibration:
    rows, subject = unmarked(count, seed)
    half = count // 2
    parts = [("real", rows[:half], subject[:half]), ("base", rows[half:], subject[half:])]
    return joined(parts, "glyph", "simulated")


def key(lora: str = "mono", user: str = "", bits: int = 32) -> Key:
    return OwnerKey(b"\x07" * 32).issue(lora, user, bits)
