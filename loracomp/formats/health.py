"""The mathematics of an adapter's health, in factor space: no dense update is ever formed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from math import isfinite, log
from statistics import median

import torch
from torch import Tensor

OUTLIER = 6.0
_SMALLEST_GROUP = 5
# Half a decibel: below it a spread of norms says nothing, however alike the modules of a kind are.
_LEAST_SPREAD = 0.06
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


def finite(values: Tensor) -> bool:
    """Whether all values are finite; one pass, no copy (NaN and infinity survive the extremes)."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = torch.aminmax(values if values.element_size() > 1 else values.float())
    return isfinite(float(low)) and isfinite(float(high))


def kind(path: str) -> str:
    """What sort of layer a path names: the path without the indices of blocks and layers."""
    return _INDEX.sub("#", path)


def outliers(sizes: Mapping[str, float], threshold: float = OUTLIER) -> dict[str, float]:
    """Robust z-scores, by path, of layers whose log size stands out among layers of their kind.

    z = 0.6745 (log s - median) / MAD (Iglewicz and Hoaglin 1993); kinds of fewer than five layers and
    layers without a size are passed over.

    Args:
        sizes: Root mean square of the entries of ΔW by path, so that layers of all widths compare.
        threshold: Smallest |z| that is returned.
    """
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for path, value in sizes.items():
        if isfinite(value) and value > 0:
            groups[kind(path)][path] = log(value)
    found: dict[str, float] = {}
    for group in groups.values():
        if len(group) < _SMALLEST_GROUP:
            continue
        middle = median(group.values())
        spread = max(median(abs(v - middle) for v in group.values()), _LEAST_SPREAD)
        scores = {path: 0.6745 * (value - middle) / spread for path, value in group.items()}
        found |= {path: z for path, z in scores.items() if abs(z) > threshold}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))
