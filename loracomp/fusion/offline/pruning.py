"""Elementwise merges: entries of each ΔW are dropped before the sum, by size or at random.

All act on ΔW itself, layer by layer. PEFT's ``ties``, ``dare_*`` and ``magnitude_prune`` prune A and B
separately, which is another thing; its ``*_svd`` forms act on ΔW as here. mergekit acts on whole tensors of
fine-tuned models minus the base, which for a LoRA are the ΔW here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.offline.dense import Prune, elected, entries, factored, magnitudes, merged, total
from loracomp.fusion.offline.merger import merge_method
from loracomp.fusion.offline.parents import Site
from loracomp.fusion.offline.rank import RankRule
from loracomp.lowrank import LowRank


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"{name} {value} is outside (0, 1]; it is the share of entries that is kept")


def _refactored(site: Site, dense: Tensor, rule: RankRule) -> LowRank:
    return factored(dense, site.shape, rule.or_limit(site.largest))


@merge_method("ties", summary="largest entries, elected signs, mean of the agreeing", paper="2306.01708")
def ties(site: Site, rule: RankRule, *, density: float = 0.2) -> LowRank:
    """Trim each ΔWᵢ to its largest entries, elect a sign per entry, average those of that sign.

    Entry by entry: sign = sgn Σ wᵢ δᵢ, result = mean of the wᵢ δᵢ ≠ 0 with that sign. Trimming is per layer
    (as in PEFT and mergekit; the paper trims over the whole model). The mean divides by the number of
    agreeing parents, as in the paper and PEFT, so that weight 0.5 is half the strength; mergekit divides
    by the sum of their weights.

    Args:
        site: The layer.
        rule: Rank of the result.
        density: Share of entries that are kept of each ΔWᵢ, in (0, 1].

    Raises:
        UsageError: ``density`` outside (0, 1].

    Reference: TIES-Merging, Yadav et al. 2023, arXiv:2306.01708, §3.2.
    """
    _share("density", density)
    count = max(int(density * entries(site)), 1)
    prunes = [_at_least(_ranked(update, [count])[0]) if update.rank else _same for update in site.updates]
    return _refactored(site, merged(site, prunes, elected), rule)


@merge_method("dare", summary="random entries dropped, the others scaled up", paper="2311.03099")
def dare(site: Site, rule: RankRule, *, density: float = 0.5, elect: bool = False) -> LowRank:
    """Keep each entry with probability ``density`` and divide by it; sum, or elect signs as in TIES.

    The expectation over seeds of the plain sum is Σ wᵢ ΔWᵢ. PEFT's ``dare_linear_svd`` is the sum and
    ``dare_ties_svd`` the election; mergekit's ``dare_linear`` also divides by Σ wᵢ unless told not to.

    Args:
        site: The layer.
        rule: Rank of the result.
        density: Share of entries that are kept, in (0, 1].
        elect: Average the entries that agree with the elected sign instead of adding all.

    Raises:
        UsageError: ``density`` outside (0, 1].

    Reference: DARE, Yu et al. 2023, arXiv:2311.03099, §3.2.
    """
    _share("density", density)

    def dropping(index: int) -> Prune:
        generator = site.generator(index)
        return lambda rows: rows * (torch.rand(rows.shape, generator=generator) < density) / density

    prunes = [dropping(index) for index in range(len(site.updates))]
    return _refactored(site, merged(site, prunes, elected if elect else total), rule)


@merge_method("della", summary="small entries dropped more often, elected signs", paper="2406.11617")
def della(
    site: Site, rule: RankRule, *, density: float = 0.5, window: float = 0.3, elect: bool = True
) -> LowRank:
    """Keep the j-th smallest of the n entries of a row with a probability that rises with j; then as TIES.

    pⱼ = density + window · ((j - 1) / (n - 1) - ½), entries divided by their own pⱼ. mergekit calls half the
    window epsilon, divides all by one factor, and then by the weights' sum; PEFT has none.

    Args:
        site: The layer.
        rule: Rank of the result.
        density: Mean probability of being kept, in (0, 1).
        window: Difference between the largest and the smallest probability; both stay in (0, 1].
        elect: Average the entries that agree with the elected sign, as the paper does, instead of adding all.

    Raises:
        UsageError: Probabilities outside (0, 1].

    Reference: DELLA-Merging, Deep et al. 2024, arXiv:2406.11617, §3.1 (MAGPRUNE).
    """
    _share("density", density)
    if window < 0 or density - window / 2 <= 0 or density + window / 2 > 1:
        ends = f"{density - window / 2:g} to {density + window / 2:g}"
        raise UsageError(f"density {density} with window {window} gives probabilities {ends}; stay in (0, 1]")

    def dropping(index: int) -> Prune:
        generator = site.generator(index)
        return lambda rows: _magpruned(rows, density, window, generator)

    prunes = [dropping(index) for index in range(len(site.updates))]
    return _refactored(site, merged(site, prunes, elected if elect else total), rule)


@merge_method("breadcrumbs", summary="largest and smallest entries dropped, then the sum", paper="2312.06795")
def breadcrumbs(site: Site, rule: RankRule, *, density: float = 0.9, outliers: float = 0.01) -> LowRank:
    """Drop the share ``outliers`` of largest entries of each ΔWᵢ, keep ``density`` below them, and add.

    mergekit's ``breadcrumbs`` with gamma = outliers, without division by the weights' sum; PEFT has none
    (its ``magnitude_prune`` keeps the largest).

    Args:
        site: The layer.
        rule: Rank of the result.
        density: Share of entries that are kept, in (0, 1].
        outliers: Share of largest entries that are dropped, in [0, 1 - density].

    Raises:
        UsageError: Shares out of range.

    Reference: Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795, §3.
    """
    _share("density", density)
    if not 0 <= outliers <= 1 - density + 1e-12:
        raise UsageError(f"outliers {outliers} is outside [0, 1 - density] with density {density}")
    top = int(outliers * entries(site))
    last = min(max(top + int(density * entries(site)), top + 1), entries(site))
    prunes = [
        _between(*_ranked(update, [top + 1, last])) if update.rank else _same for update in site.updates
    ]
    return _refactored(site, merged(site, prunes, total), rule)


def _ranked(update: LowRank, places: list[int]) -> list[float]:
    """The magnitudes of an update at these places of the descending order, counted from 1."""
    values = magnitudes(update)
    return [float(values.kthvalue(len(values) + 1 - place).values) for place in places]


def _same(rows: Tensor) -> Tensor:
    return rows


def _at_least(threshold: float) -> Prune:
    return lambda rows: rows * (rows.abs() >= threshold)


def _between(high: float, low: float) -> Prune:
    return lambda rows: rows * ((rows.abs() <= high) & (rows.abs() >= low))


def _magpruned(rows: Tensor, density: float, window: float, generator: torch.Generator) -> Tensor:
    order = rows.abs().argsort(dim=1, stable=True).argsort(dim=1)
    place = order / max(rows.shape[1] - 1, 1) - 0.5
    keep = density + window * place
    return rows * (torch.rand(rows.shape, generator=generator) < keep) / keep
