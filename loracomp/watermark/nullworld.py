"""The unmarked world: do p-values keep their promise on images that nobody marked?

The tests run over images × keys. A share of false positives is uncertain for two reasons, few images and few
keys, so its interval draws both anew. The rule that pools bits of several images as fair coins is measured
beside ours, because it is the usual one and does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.watermark.evidence import Scale, pooled
from loracomp.watermark.groups import grouped
from loracomp.watermark.keys import Key
from loracomp.watermark.tails import bit_threshold, critical_cosine, share_interval

DRAWS = 1000
WORST_KEY = 0.99
COARSE = 0.05
MOST_COARSE = 0.5


@dataclass(frozen=True)
class Rate:
    """False positives of one population at one number of images.

    Attributes:
        population: Its name.
        images: Images per set.
        sets: Sets.
        keys: Keys.
        nominal: Promised rate α.
        rate: Measured rate, over all sets and keys.
        low: Lower end of the 95 % interval, sets by cluster and keys drawn anew.
        high: Upper end.
        worst_key: The 99th-percentile key's own rate at α.
        worst_key_coarse: The same at 0.05, where a key's rate can be told from few sets.
        pooled_binomial: Rate of the rule that takes the bits of all images for fair coins, at the same α.
        holds: Whether α lies in the interval, and 0.05 in that of the coarse test, and no key is far off.
    """

    population: str
    images: int
    sets: int
    keys: int
    nominal: float
    rate: float
    low: float
    high: float
    worst_key: float
    worst_key_coarse: float
    pooled_binomial: float
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self)


def measure(
    coordinates: Tensor,
    clusters: Tensor,
    keys: Sequence[Key],
    *,
    scale: Scale,
    images: int = 1,
    alpha: float = 1e-3,
    population: str = "unmarked",
    worst: float = 1e-2,
) -> Rate:
    """False positives of the key-randomisation test on unmarked images.

    Args:
        coordinates: (n, dimensions) of unmarked images that ``scale`` does not come from, or of all.
        clusters: (n,) sources of the images.
        keys: Keys, screened as issued ones are.
        scale: Calibration.
        images: Images in a set.
        alpha: Nominal rate.
        population: Name for the report.
        worst: Most that the 99th-percentile key may have.
    """
    dimensions = coordinates.shape[1]
    standard = scale.standard(coordinates)
    index = grouped(clusters, images)
    sets, labels = pooled(standard[index]), clusters[index[:, 0]]
    table = torch.stack([key.direction(dimensions) for key in keys])
    scores = sets @ table.T
    hits = (scores >= critical_cosine(alpha, dimensions)).double()
    coarse = (scores >= critical_cosine(COARSE, dimensions)).double()
    low, high = two_way(hits, labels)
    coarse_low, coarse_high = two_way(coarse, labels)
    worst_key = float(hits.mean(0).quantile(WORST_KEY))
    worst_coarse = float(coarse.mean(0).quantile(WORST_KEY))
    right = low <= alpha <= high and coarse_low <= COARSE <= coarse_high
    holds = right and worst_key <= worst and worst_coarse <= MOST_COARSE
    return Rate(
        population, images, len(sets), len(keys), alpha, float(hits.mean()), low, high, worst_key,
        worst_coarse, _binomial(coordinates[index], keys, alpha), holds,
    )  # fmt: skip


def two_way(hits: Tensor, clusters: Tensor, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Interval of a mean over (sets, keys) where sets of one cluster, and all sets of one key, are alike.

    Clusters and keys are drawn with replacement, independently (Owen 2007, The pigeonhole bootstrap,
    Annals of Applied Statistics 1(2)), which is never too narrow. Where there is no hit at all the upper
    end is the exact bound for as many trials as there are clusters or keys, whichever is fewer.

    Args:
        hits: (sets, keys) of 0 and 1.
        clusters: (sets,).
        level: Share of intervals that hold the truth.
        seed: Seed of the draws.
    """
    labels, index = clusters.unique(return_inverse=True)
    sums = torch.zeros(len(labels), hits.shape[1], dtype=torch.float64).index_add(0, index, hits)
    sizes = torch.zeros(len(labels), dtype=torch.float64).index_add(0, index, torch.ones(len(hits)).double())
    source = torch.Generator().manual_seed(seed)
    rows = _counts(len(labels), source)
    columns = _counts(hits.shape[1], source)
    means = ((rows @ sums) * columns).sum(1) / ((rows @ sizes) * hits.shape[1])
    tail = (1 - level) / 2
    low, high = (float(end) for end in means.quantile(torch.tensor([tail, 1 - tail]).double()))
    if not bool(hits.any()):
        high = share_interval(0, min(len(labels), hits.shape[1]), level)[1]
    return low, high


def _counts(size: int, source: torch.Generator) -> Tensor:
    """(draws, size): how often each of ``size`` things is drawn with replacement."""
    drawn = torch.randint(size, (DRAWS, size), generator=source)
    return torch.zeros(DRAWS, size, dtype=torch.float64).scatter_add(
        1, drawn, torch.ones(DRAWS, size).double()
    )


def _binomial(sets: Tensor, keys: Sequence[Key], alpha: float) -> float:
    """Rate of the usual rule: matching bits of all images against Bin(images · L, ½); sets (n, images, d)."""
    count, images, dimensions = sets.shape
    rates = []
    for key in keys:
        bits = images * key.bits
        threshold = bit_threshold(bits, alpha)
        if threshold is None:
            rates.append(0.0)
            continue
        logits = sets.double() @ key.carriers(dimensions).T
        right = (logits * (2 * key.message - 1) > 0).reshape(count, -1).sum(1)
        rates.append(float((right >= threshold).double().mean()))
    return sum(rates) / len(rates)
