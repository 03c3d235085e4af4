"""How well a ranking finds what is relevant, with intervals over whole concepts.

Queries of one concept are alike, so concepts are drawn in the bootstrap, never single queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loracomp.evaluation.statistics import Interval, interval


def ranks(scores: Tensor, relevant: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Rank of the best relevant item for each query, from 1; ties count against it.

    Args:
        scores: Shape (queries, items).
        relevant: Which items are relevant, shape (queries, items), bool.
        allowed: Which items take part, shape (queries, items), bool; all where None.

    Returns:
        Shape (queries,), float64; NaN for queries without a relevant item that takes part.
    """
    allowed = torch.ones_like(relevant) if allowed is None else allowed
    hidden = scores.double().masked_fill(~allowed, float("-inf"))
    wanted = relevant & allowed
    best = hidden.masked_fill(~wanted, float("-inf")).amax(1, keepdim=True)
    above = ((hidden >= best) & allowed & ~wanted).sum(1)
    return (above + 1).double().masked_fill(~wanted.any(1), float("nan"))


def summary(found: Tensor, clusters: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, Interval]:
    """Recall@k and mean reciprocal rank with 95 % intervals.

    Args:
        found: Ranks, shape (queries,); NaN where there is nothing to find.
        clusters: Concept of each query, shape (queries,), integers.
        at: The k of Recall@k, the share of queries whose best relevant item is among the first k.
    """
    values = {f"recall@{k}": torch.where(found.isnan(), found, (found <= k).double()) for k in at}
    values["mrr"] = 1 / found
    return {name: interval(value, clusters) for name, value in values.items()}


def ndcg(scores: Tensor, gains: Tensor, k: int = 10) -> Tensor:
    """Normalised discounted cumulative gain at ``k`` (Järvelin and Kekäläinen 2002, §2.2).

    Args:
        scores: Shape (queries, items).
        gains: How relevant each item is, not negative, shape (queries, items).
        k: Items that count.

    Returns:
        Shape (queries,), in [0, 1]; NaN for queries without gains.
    """
    k = min(k, scores.shape[1])
    discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
    reached = (gains.double().gather(1, scores.topk(k, 1).indices) * discounts).sum(1)
    best = (gains.double().topk(k, 1).values * discounts).sum(1)
    return reached / best.masked_fill(best == 0, float("nan"))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive scores above a negative, ties half; NaN where either is missing."""
    if not len(positive) or not len(negative):
        return float("nan")
    both = torch.cat([positive, negative]).double()
    order, places = both.unique(return_inverse=True)
    counts = torch.bincount(places, minlength=len(order)).double()
    middle = counts.cumsum(0) - (counts - 1) / 2
    total = middle[places[: len(positive)]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(total / (len(positive) * len(negative)))


def auroc_interval(
    positive: Tensor, negative: Tensor, clusters: Tensor, draws: int = 500, seed: int = 0
) -> Interval:
    """The AUROC of paired positives and negatives with its interval over clusters.

    Args:
        positive: Shape (n,).
        negative: Shape (n,), for the same queries.
        clusters: Shape (n,), integers.
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    labels, index = clusters.unique(return_inverse=True)
    members = [(index == label).nonzero()[:, 0] for label in range(len(labels))]
    source = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws if len(labels) > 1 else 0):
        chosen = torch.randint(len(labels), (len(labels),), generator=source).tolist()
        rows = torch.cat([members[label] for label in chosen])
        found.append(auroc(positive[rows], negative[rows]))
    mean = auroc(positive, negative)
    if not found:
        return Interval(mean, float("nan"), float("nan"), len(positive), len(labels))
    ends = torch.tensor(found, dtype=torch.float64).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    return Interval(mean, float(ends[0]), float(ends[1]), len(positive), len(labels))


def hubness(scores: Tensor, k: int = 10) -> float:
    """Skewness of how often an item is among the first ``k`` (Radovanović et al. 2010, §3); 0 is none."""
    k = min(k, scores.shape[1])
    counts = torch.bincount(scores.topk(k, 1).indices.flatten(), minlength=scores.shape[1]).double()
    spread = counts.std(correction=0)
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread > 0 else 0.0


def plain(numbers: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """Intervals as JSON values."""
    return {name: {"mean": i.mean, "low": i.low, "high": i.high} for name, i in numbers.items()}
