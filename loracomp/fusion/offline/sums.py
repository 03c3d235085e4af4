"""Methods that stay with the sum Σ wᵢ ΔWᵢ: exact by stacking, or truncated in factor space."""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.fusion.offline.merger import merge_method, no_rank
from loracomp.fusion.offline.parents import Site
from loracomp.fusion.offline.rank import RankRule, best, fair
from loracomp.lowrank import LowRank


@merge_method(
    "concat", summary="the exact sum: all ranks side by side", paper="2409.05976", exact=True, stacks=True
)
def concat(site: Site, rule: RankRule) -> LowRank:
    """Stacks the factors: rank Σ rᵢ, ΔW = Σ wᵢ ΔWᵢ up to one rounding of a factor to float32.

    PEFT's ``cat`` with per-layer ranks and alphas. mergekit has none, since it merges whole models.

    Raises:
        UsageError: A rank is asked for.

    Reference: FLoRA, Wang et al. 2024, arXiv:2409.05976, §3.2 (stacking instead of averaging).
    """
    no_rank("concat", rule)
    first, ranks = site.parts[0], [part.rank for part in site.parts]
    down = torch.empty(sum(ranks), *first.down.shape[1:])
    up = torch.empty(first.up.shape[0], sum(ranks), *first.up.shape[2:])
    for part, rows, columns in zip(site.parts, down.split(ranks), up.split(ranks, 1), strict=True):
        rows.copy_(part.down)
        columns.copy_(_scaled(part))
    return LowRank(down, up)


def _scaled(part: LowRank) -> Tensor:
    """Up times scale, rounded once to float32; strengths that float32 holds need no float64 for that."""
    wide = part.up if part.up.dtype is torch.float64 else part.up.float()
    single = float(torch.tensor(part.scale, dtype=torch.float32)) == part.scale
    return (wide if single else wide.double()) * part.scale


@merge_method("svd", summary="the sum in few ranks, fair to quiet adapters", paper="2106.09685")
def svd(site: Site, rule: RankRule, *, fair_ranks: bool = True) -> LowRank:
    """The sum at rank K (that of the largest parent by default), by QR and a small SVD of the factors.

    With ``fair_ranks`` no parent loses much more of itself than another
    (:func:`~loracomp.fusion.offline.rank.fair`); without, it is the Eckart–Young optimum of the sum, which is
    what PEFT's ``svd`` computes from dense matrices (there with ``svd_rank``, and before release 0.21 with
    the strength of each adapter applied twice). mergekit has no counterpart.

    Reference: Eckart and Young 1936; the LoRA form is Hu et al. 2021, arXiv:2106.09685, §4.1.
    """
    chosen = rule.or_limit(site.largest)
    return fair(site.parts, chosen) if fair_ranks else best(site.parts, chosen)


@merge_method(
    "fedsvd", summary="federated: the exact average, inputs orthonormal", paper="2505.12805",
    averages=True, exact=True,
)  # fmt: skip
def fedsvd(site: Site, rule: RankRule) -> LowRank:
    """The average Σ nᵢ ΔWᵢ / Σ nᵢ of clients' updates as up = U S, down = Vᵀ with orthonormal rows.

    Weights are sample counts. Without a rank all of it is kept and the average is exact; averaging the
    factors instead gives (Σ pᵢ Bᵢ)(Σ pᵢ Aᵢ), whose cross terms no client has (the report says how far off
    that is). The paper averages B alone over clients that share A, which is this average for them; here
    the clients' A and ranks may differ. PEFT and mergekit have no counterpart.

    Reference: FedSVD, Lee et al. 2025, arXiv:2505.12805, §3.
    """
    layer = best(site.parts, rule)
    down, up = layer.down.flatten(1), layer.up.flatten(1)
    sizes = down.norm(dim=1)
    return LowRank((down / sizes[:, None]).reshape(layer.down.shape), (up * sizes).reshape(layer.up.shape))
