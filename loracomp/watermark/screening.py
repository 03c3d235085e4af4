"""Keys that happen to fit unmarked pictures are not issued.

Screening makes the issued keys a part of all keys, so a p-value over random keys has to be divided by that
part's share: P(p ≤ α | issued) ≤ α / P(issued).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loracomp.watermark.calibration import Calibration
from loracomp.watermark.keys import Key, OwnerKey
from loracomp.watermark.tails import critical_cosine, share_interval

LIMIT = 1e-4
QUANTILE = 0.999
DECOYS = 1000


def passes(calibration: Calibration, direction: Tensor) -> Tensor:
    """Whether directions (…, dimensions) may be issued: on single unmarked images of the calibration their
    mean score is at most one deviation, and their 99.9 % quantile below the cosine of nominal 1e-4.
    """
    dimensions = direction.shape[-1]
    scores = direction @ calibration.standard.T
    mean = scores.mean(-1) * dimensions**0.5
    high = scores.quantile(QUANTILE, dim=-1)
    return (mean <= 1) & (high <= critical_cosine(LIMIT, dimensions))


def screen(calibration: Calibration, key: Key) -> bool:
    """Whether a key may be issued; see :func:`passes`."""
    return bool(passes(calibration, key.direction(calibration.coordinates.shape[1])))


def with_acceptance(calibration: Calibration, decoys: int = DECOYS) -> Calibration:
    """The calibration with a 99 % lower bound on the share of random keys that pass, from decoys."""
    dimensions = calibration.coordinates.shape[1]
    found = directions(dimensions, decoys)
    hits = int(sum(int(passes(calibration, part).sum()) for part in found.split(50)))
    return replace(calibration, acceptance=max(1e-3, share_interval(hits, decoys, 0.98)[0]))


def directions(dimensions: int, count: int, seed: int = 0) -> Tensor:
    """(count, dimensions) float64: directions of decoy keys, uniform on the sphere."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dimensions, generator=source, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def decoy_keys(count: int, bits: int, seed: int = 0) -> list[Key]:
    """Keys of an owner that nobody is, for measuring false positives."""
    owner = OwnerKey(seed.to_bytes(32, "big"))
    return [owner.derive("decoy", "", number, bits) for number in range(count)]
