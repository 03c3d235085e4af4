"""LiON: norms made alike, conflicts made orthogonal, then the sum."""

from __future__ import annotations

from math import exp, log, prod

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.offline.merger import merge_method
from loracomp.fusion.offline.parents import Site
from loracomp.fusion.offline.rank import RankRule, fair
from loracomp.lowrank import LowRank, cosine, norm

_OFF = 0.01
_CLAMP = 2.0


@merge_method("lion", summary="norms made alike, overlaps taken out of later adapters", paper="2507.05678")
def lion(
    site: Site, rule: RankRule, *, consistency: float = 0.5, conflict: float = 0.3, removal: float = 1.0
) -> LowRank:
    """Σ wᵢ uᵢ ΔWᵢ with norms pulled together, and the overlap of conflicting adapters given to the first.

    1. Norm consistency: uᵢ = (n* / ‖ΔWᵢ‖)^consistency within [½, 2], n* the geometric mean over the parents
       of this layer. A layer under 1 % of its adapter's peak is off on purpose and left as it is.
    2. Orthogonality: where |cos(ΔWᵢ, ΔWⱼ)| > conflict, the part of ΔWⱼ in the column space of the earlier
       ΔWᵢ is reduced: Bⱼ ← Bⱼ - removal · Qᵢ Qᵢᵀ Bⱼ. The order of the adapters is their priority.

    The paper trains video LoRAs whose features have these properties; this is its training-free counterpart
    on weights, for files as they are. All ranks are kept where no rank is asked for. PEFT and mergekit
    have no counterpart.

    Args:
        site: The layer.
        rule: Rank of the result.
        consistency: Exponent in [0, 1]; 0 leaves the norms alone.
        conflict: Cosine in [0, 1] from which adapters conflict; 1 turns step 2 off.
        removal: Share in [0, 1] of the overlap that is taken out.

    Raises:
        UsageError: An option outside [0, 1].

    Reference: LiON-LoRA, 2025, arXiv:2507.05678 (orthogonality and norm consistency).
    """
    for name, value in (("consistency", consistency), ("conflict", conflict), ("removal", removal)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} {value} is outside [0, 1]")
    scales = norm_scales(site, consistency)
    updates = separated(site, conflict, removal)
    triples = zip(updates, site.weights, scales, strict=True)
    parts = [update.scaled(weight * scale) for update, weight, scale in triples]
    return fair(parts, rule)


def norm_scales(site: Site, consistency: float) -> list[float]:
    """uᵢ of each parent; see :func:`lion`."""
    sizes = [norm(update) for update in site.updates]
    side = prod(site.shape) ** 0.5
    pairs = zip(sizes, site.family.peaks, strict=True)
    on = [size > 0 and size / side >= _OFF * peak for size, peak in pairs]
    logs = [log(size) for size, alive in zip(sizes, on, strict=True) if alive]
    if not logs:
        return [1.0] * len(sizes)
    target = exp(sum(logs) / len(logs))
    return [
        min(max((target / size) ** consistency, 1 / _CLAMP), _CLAMP) if alive else 1.0
        for size, alive in zip(sizes, on, strict=True)
    ]


def separated(site: Site, conflict: float, removal: float) -> list[LowRank]:
    """The updates, later ones without their overlap with earlier ones that they conflict with."""
    done: list[LowRank] = []
    for update in site.updates:
        current = update
        for earlier, original in zip(done, site.updates, strict=False):
            if abs(cosine(original, update)) > conflict:
                current = _without(current, earlier, removal)
        done.append(current)
    return done


def _without(update: LowRank, other: LowRank, removal: float) -> LowRank:
    """The update with a share of what lies in the column space of ``other`` taken out, float64."""
    up = update.up.flatten(1).double()
    basis = _basis(other)
    up = up - removal * basis @ (basis.T @ up)
    return LowRank(update.down.double(), up.reshape(update.up.shape), update.alpha)


def _basis(layer: LowRank) -> Tensor:
    """Orthonormal basis of the column space of ΔW, directions without size left out."""
    up, down = layer.matrices()
    q_up, r_up = torch.linalg.qr(up)
    u, s, _ = torch.linalg.svd(r_up @ torch.linalg.qr(down.T, mode="r").R.T, full_matrices=False)
    return q_up @ u[:, s > s[:1] * 1e-10]
