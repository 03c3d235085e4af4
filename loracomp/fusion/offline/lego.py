"""LoRA-LEGO: rank-one units of all adapters, clustered and rebuilt into one adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.offline.merger import merge_method
from loracomp.fusion.offline.parents import Site
from loracomp.fusion.offline.rank import RankRule
from loracomp.lowrank import LowRank, canonical, zero

_NEGLIGIBLE = 1e-10


@dataclass(frozen=True)
class Units:
    """Minimal semantic units: pairs of an input and an output direction, ΔW = Σ bₚ aₚᵀ.

    Attributes:
        inputs: a, shape (R, n).
        outputs: b, shape (R, m).
    """

    inputs: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def similarity(self, other: Units) -> Tensor:
        """cos(a, a′) cos(b, b′), the cosine of the rank-one matrices, (R, R′): signs of a unit cancel.

        Rounded, since units of one adapter are orthogonal and rounding errors must not decide among them.
        """
        return (_cosines(self.inputs, other.inputs) * _cosines(self.outputs, other.outputs)).round(decimals=7)


@merge_method("lego", summary="rank-one units of all adapters, duplicates merged", paper="2409.16167")
def lego(
    site: Site,
    rule: RankRule,
    *,
    similarity: float = 0.5,
    iterations: int = 10,
    parameter_reweight: bool = True,
    output_reweight: bool | None = None,
) -> LowRank:
    """Pool the units of all adapters, cluster them into k, and take the clusters' means as units.

    Units are taken from each ΔWᵢ in canonical gauge (up = U √S, down = √S Vᵀ), so that (B, A) and
    (B M, M⁻¹ A), which are the same adapter, give the same result; the paper takes the rows and columns of
    the files as they are. The distance is the angle between rank-one matrices, in which (a, b) and (-a, -b)
    are one unit; the paper's is Euclidean in (a, b). Members are turned to their centroid before they are
    averaged. wᵢ and alpha / r go into the units first.

    k is the rank asked for (at most the number of units R; clusters are then searched from the units that
    are least alike), or else R less the units that duplicate another one (similarity above the
    threshold), so that unrelated adapters are stacked and only duplicates become one. k = R with no
    output reweighting is the exact sum. PEFT and mergekit have no counterpart.

    Args:
        site: The layer.
        rule: A rank, or nothing for k by similarity.
        similarity: Threshold in (0, 1] above which units are duplicates.
        iterations: Most rounds of k-means.
        parameter_reweight: Multiply each mean by mean |u|∞ of its members over its own |·|∞, since
            averaging shrinks.
        output_reweight: Multiply the update by √(r / k), r the largest parent's rank, since more units
            give an output of larger variance. By default where a rank is asked for, as in the paper; with
            k by similarity it would weaken what is merely stacked.

    Raises:
        UsageError: A threshold outside (0, 1], no iterations, or a rank rule that is no number.

    Reference: LoRA-LEGO, Zhao et al. 2024, arXiv:2409.16167, §4.
    """
    if not 0 < similarity <= 1:
        raise UsageError(f"similarity {similarity} is outside (0, 1]")
    if iterations < 1 or rule.kind not in ("default", "limit"):
        raise UsageError("lego needs at least 1 iteration, and a number (or nothing) as its rank")
    units = pooled(site)
    if not len(units):
        return zero(site.shape, torch.float64)
    if rule.kind == "limit":
        start = _spread(units, min(rule.limit, len(units)))
    else:
        start = _means(units, _duplicates(units, similarity))
    owners, centroids = clustered(units, start, iterations)
    if parameter_reweight:
        centroids = _peaked(units, owners, centroids)
    by_output = rule.kind == "limit" if output_reweight is None else output_reweight
    size = (site.largest / len(centroids)) ** 0.5 if by_output else 1.0
    tail = (1,) * (len(site.shape) - 2)
    down = centroids.inputs.reshape(-1, *site.shape[1:])
    up = (centroids.outputs.T * size).reshape(site.shape[0], -1, *tail)
    return LowRank(down.contiguous(), up.contiguous())


def pooled(site: Site) -> Units:
    """The units of all wᵢ ΔWᵢ, float64, those without size left out."""
    ups, downs = [], []
    for part in site.parts:
        layer = canonical(part.to(dtype=torch.float64))
        up, down = layer.up.flatten(1), layer.down.flatten(1)
        sizes = down.norm(dim=1)
        kept = sizes > _NEGLIGIBLE**0.5 * sizes.max() if len(sizes) else sizes.bool()
        ups.append(up[:, kept].T)
        downs.append(down[kept])
    return Units(torch.cat(downs), torch.cat(ups))


def clustered(units: Units, start: Units, iterations: int) -> tuple[Tensor, Units]:
    """Lloyd's algorithm with the similarity of rank-one matrices.

    Args:
        units: R units.
        start: k ≤ R centroids.
        iterations: Most rounds.

    Returns:
        The cluster of each unit, shape (R,), every cluster with a member; and the k means.
    """
    owners = _assigned(units, start)
    centroids = start
    for _ in range(iterations):
        centroids = _means(units, owners, centroids)
        moved = _assigned(units, centroids)
        if torch.equal(moved, owners):
            break
        owners = moved
    return owners, _means(units, owners, centroids)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T


def _duplicates(units: Units, threshold: float) -> Tensor:
    """Clusters of units that are linked by pairs above the threshold, numbered from 0, shape (R,)."""
    linked = units.similarity(units) > threshold
    owners = torch.arange(len(units))
    for index in range(len(units)):
        partners = owners[linked[index]]
        if len(partners) > 1:
            owners[torch.isin(owners, partners)] = int(partners.min())
    return torch.unique(owners, return_inverse=True)[1]


def _spread(units: Units, count: int) -> Units:
    """``count`` units as first centroids: the largest, then always the one least like those taken."""
    sizes = units.inputs.norm(dim=1) * units.outputs.norm(dim=1)
    table = units.similarity(units)
    chosen = [int(sizes.argmax())]
    nearest = table[chosen[0]].clone()
    for _ in range(count - 1):
        nearest[chosen] = torch.inf
        # Among units that are equally unlike, as orthogonal ones are, the larger matters more.
        far = nearest <= nearest.min() + 0.1
        chosen.append(int(torch.where(far, sizes, -torch.ones_like(sizes)).argmax()))
        nearest = torch.maximum(nearest, table[chosen[-1]])
    return Units(units.inputs[chosen], units.outputs[chosen])


def _assigned(units: Units, centroids: Units) -> Tensor:
    """The most similar centroid of each unit; a centroid without units gets the one that fits worst."""
    table = units.similarity(centroids)
    # Equal similarity goes to the first centroid.
    owners = (table - 1e-9 * torch.arange(len(centroids))).argmax(dim=1)
    values = table.gather(1, owners[:, None])[:, 0]
    for cluster in range(len(centroids)):
        if not bool((owners == cluster).any()):
            alone = torch.bincount(owners, minlength=len(centroids))[owners] == 1
            taken = int(torch.where(alone, torch.inf, values).argmin())
            owners[taken], values[taken] = cluster, 1.0
    return owners


def _means(units: Units, owners: Tensor, towards: Units | None = None) -> Units:
    """Means of the clusters' members, each turned to its centroid (or to the cluster's largest member)."""
    count = int(owners.max()) + 1
    if towards is None:
        sizes = units.inputs.norm(dim=1)
        largest = [int(torch.where(owners == c, sizes, -1.0).argmax()) for c in range(count)]
        towards = Units(units.inputs[largest], units.outputs[largest])
    signs = _signs(units, Units(towards.inputs[owners], towards.outputs[owners]))
    members = torch.nn.functional.one_hot(owners, count).to(signs)
    weights = (members / members.sum(0)).T * signs
    return Units(weights @ units.inputs, weights @ units.outputs)


def _signs(units: Units, centroids: Units) -> Tensor:
    """±1 for each unit, such that a and b together point the way of its centroid's, shape (R,)."""
    similarity = torch.nn.functional.cosine_similarity
    agreement = similarity(units.inputs, centroids.inputs) + similarity(units.outputs, centroids.outputs)
    return torch.where(agreement < -1e-7, -1.0, 1.0).to(units.inputs)


def _peaked(units: Units, owners: Tensor, centroids: Units) -> Units:
    """Centroids with the mean infinity norm of their members."""
    whole = torch.cat([units.inputs, units.outputs], dim=1).abs().amax(1)
    members = torch.nn.functional.one_hot(owners, len(centroids)).to(whole)
    wanted = (members.T @ whole) / members.sum(0)
    here = torch.cat([centroids.inputs, centroids.outputs], dim=1).abs().amax(1)
    factors = (wanted / here.clamp(min=torch.finfo(here.dtype).tiny))[:, None]
    return Units(centroids.inputs * factors, centroids.outputs * factors)
