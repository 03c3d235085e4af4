"""Which of several marked LoRAs made images: one test per key, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.watermark.calibration import Calibration
from loracomp.watermark.evidence import Score, score
from loracomp.watermark.keys import Key

FDR = 0.01


@dataclass(frozen=True)
class Part:
    """What images say about one LoRA of a registry.

    Attributes:
        lora: Its name.
        user: Whom the copy is for.
        score: The score with its key.
        p: p-value: the larger of the random key's and the registered key's own.
        p_fdr: Adjusted for the false discovery rate (Benjamini & Hochberg).
        p_family: Adjusted for the family-wise rate (Holm).
        share: Its part of the strengths of all named LoRAs; 0 for those not named.
        named: Whether it is named at the chosen rate.
    """

    lora: str
    user: str
    score: Score
    p: float
    p_fdr: float
    p_family: float
    share: float
    named: bool

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


def attribute(
    coordinates: Tensor,
    keys: Sequence[Key],
    calibration: Calibration,
    *,
    rate: float = FDR,
    gains: Sequence[float] | None = None,
) -> list[Part]:
    """All LoRAs of a registry, the likeliest first.

    Keys are independent, so given the images their p-values are too, and Benjamini and Hochberg's procedure
    holds. Where calibration is too small for an own null of the key, the random key's p-value stands alone.

    Args:
        coordinates: (images, dimensions), duplicates left out.
        keys: One per LoRA.
        calibration: Of the same extractor.
        rate: False discovery rate.
        gains: Projection at strength 1 of each; 1 where None.
    """
    sizes = list(gains or [1.0] * len(keys))
    scores = [score(coordinates, key, calibration.scale, gain) for key, gain in zip(keys, sizes, strict=True)]
    values = [_p(found, key, calibration, coordinates) for found, key in zip(scores, keys, strict=True)]
    fdr, family = benjamini_hochberg(values), holm(values)
    named = [adjusted <= rate for adjusted in fdr]
    strengths = [0.0] * len(keys)
    chosen = [number for number, is_named in enumerate(named) if is_named]
    if chosen:
        fitted = relative_strengths(coordinates, [keys[n] for n in chosen], calibration).tolist()
        for number, value in zip(chosen, fitted, strict=True):
            strengths[number] = max(0.0, value / sizes[number])
    total = sum(strengths) or 1.0
    rows = [
        Part(key.lora, key.user, found, p, low, high, strength / total, is_named)
        for key, found, p, low, high, strength, is_named in zip(
            keys, scores, values, fdr, family, strengths, named, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (row.p, -row.score.cosine))


def _p(found: Score, key: Key, calibration: Calibration, coordinates: Tensor) -> float:
    own = calibration.empirical(key.direction(coordinates.shape[1]), found.cosine, len(coordinates))
    p = min(1.0, found.p_key / calibration.acceptance)
    return p if own is None else max(p, own.p)


def benjamini_hochberg(values: Sequence[float]) -> list[float]:
    """Adjusted p-values of the step-up procedure (Benjamini & Hochberg 1995)."""
    count = len(values)
    order = sorted(range(count), key=lambda i: values[i])
    out = [1.0] * count
    least = 1.0
    for rank in range(count, 0, -1):
        index = order[rank - 1]
        least = min(least, values[index] * count / rank)
        out[index] = least
    return out


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values of the step-down procedure (Holm 1979)."""
    count = len(values)
    most = 0.0
    out = [1.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda i: values[i])):
        most = max(most, min(1.0, values[index] * (count - rank)))
        out[index] = most
    return out


def relative_strengths(coordinates: Tensor, keys: Sequence[Key], calibration: Calibration) -> Tensor:
    """Strengths of several marks fitted together by least squares, (keys,): codes need not be orthogonal."""
    dimensions = coordinates.shape[1]
    table = torch.stack([key.direction(dimensions) for key in keys], dim=1)
    mean = (coordinates.double() - calibration.scale.mean).mean(0)
    return torch.linalg.lstsq(table, mean[:, None]).solution[:, 0]
