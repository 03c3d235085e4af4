"""Means with intervals: the cluster bootstrap, and paired differences between two methods.

Scores of one subject are alike, so whole clusters (subjects) are drawn, never single images. The draws
are seeded: equal input gives equal intervals on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 2000
FEWEST = 6


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval; the ends are NaN where there is only one cluster.

    Attributes:
        mean: Mean over all values; NaN without any.
        low: Lower end.
        high: Upper end.
        count: Number of values.
        clusters: Number of clusters that they come from.
    """

    mean: float
    low: float
    high: float
    count: int
    clusters: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False for fewer than six clusters, where no sign test reaches 5 %."""
        return self.clusters >= FEWEST and (self.low > 0 or self.high < 0)


def cluster_draws(values: Tensor, clusters: Tensor, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Means of ``draws`` bootstrap samples that draw whole clusters with replacement.

    Args:
        values: Shape (n,), finite.
        clusters: Cluster of each value, shape (n,), any integers.
        draws: Number of samples.
        seed: Seed of the draws.

    Returns:
        Shape (draws,), float64.

    Reference: Davison & Hinkley, Bootstrap Methods and their Application, 1997, §3.8.
    """
    labels, index = clusters.unique(return_inverse=True)
    zeros = torch.zeros(len(labels), dtype=torch.float64)
    sums = zeros.index_add(0, index, values.double())
    sizes = zeros.index_add(0, index, torch.ones_like(values, dtype=torch.float64))
    source = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(labels), (draws, len(labels)), generator=source)
    return sums[chosen].sum(1) / sizes[chosen].sum(1)


def interval(
    values: Tensor, clusters: Tensor, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean of ``values`` with its percentile interval over clusters; values that are NaN are left out.

    The draws spread by a factor √(C / (C - 1)) more around the mean than the plain bootstrap's, which
    is too narrow for few clusters C (Hesterberg 2015, What Teachers Should Know about the Bootstrap, §3),
    but never beyond the values themselves.

    Args:
        values: Shape (n,).
        clusters: Shape (n,), integers.
        level: Share of samples whose interval holds the truth, in (0, 1).
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    kept = ~values.isnan()
    values, clusters = values[kept].double().cpu(), clusters[kept].cpu()
    count, groups = len(values), len(clusters.unique())
    if not count:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    mean = values.mean()
    if groups == 1:
        return Interval(float(mean), float("nan"), float("nan"), count, 1)
    spread = (cluster_draws(values, clusters, draws, seed) - mean) * (groups / (groups - 1)) ** 0.5
    tail = (1 - level) / 2
    ends = mean + spread.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    ends = ends.clamp(values.min(), values.max())
    return Interval(float(mean), float(ends[0]), float(ends[1]), count, groups)


def paired_difference(
    ours: Tensor,
    theirs: Tensor,
    clusters: Tensor,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Mean of ``ours - theirs`` with its interval, both measured on the same cells and seeds.

    Args:
        ours: Shape (n,); a pair with a NaN is left out.
        theirs: Shape (n,), in the same order.
        clusters: Shape (n,), integers.
        level: Share of samples whose interval holds the truth, in (0, 1).
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    return interval(ours - theirs, clusters, level=level, draws=draws, seed=seed)
