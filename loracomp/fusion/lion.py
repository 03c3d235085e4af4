"""LiON live: the sum of adapters whose norms were made alike and whose conflicts were taken apart.

LiON-LoRA (arXiv:2507.05678) trains adapters of a video model so that their features are orthogonal and their
norms consistent. For adapters as they are, both are edits of their factors, made once when they are attached;
its third property, strength that acts linearly, is :mod:`loracomp.fusion.effect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.errors import UsageError
from loracomp.fusion.edits import EDITS
from loracomp.fusion.program import METHODS, GateTable
from loracomp.lowrank import LowRank


@METHODS.register(
    "lion", summary="the sum with norms made alike and conflicts taken apart", paper="2507.05678"
)
def lion(
    weights: Tensor, steps: int, *, consistency: float = 0.5, conflict: float = 0.3, removal: float = 1.0
) -> GateTable:
    """Σ wᵢ uᵢ ΔWᵢ', layer by layer, as ``loracomp merge --method lion`` computes it.

    The gates are those of merge; :func:`alike` changes the adapters.

    Args:
        weights: Shape (adapters,).
        steps: Number of denoising steps.
        consistency: Exponent in [0, 1] by which norms are pulled together; 0 leaves them alone.
        conflict: Cosine in [0, 1] from which two adapters conflict in a layer; 1 takes nothing apart.
        removal: Share in [0, 1] of the overlap that is taken out of the later adapter.

    Raises:
        UsageError: An option outside [0, 1].

    Reference: LiON-LoRA, Zhang et al., ICCV 2025, arXiv:2507.05678 (orthogonality, norm consistency).
    """
    for name, value in (("consistency", consistency), ("conflict", conflict), ("removal", removal)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} {value} is outside [0, 1]")
    return GateTable(weights.expand(steps, 1, -1).clone(), torch.ones(steps, 1))


@EDITS.register("lion", summary="norms made alike, conflicts taken apart", paper="2507.05678")
def alike(
    adapters: Sequence[Adapter], *, consistency: float = 0.5, conflict: float = 0.3, removal: float = 1.0
) -> list[Adapter]:
    """The adapters with norms pulled together and overlaps given to the earlier one; ranks stay.

    Options as in :func:`lion`. Raises what ``offline.parents.Family`` raises.
    """
    from loracomp.fusion.offline.lion import norm_scales, separated
    from loracomp.fusion.offline.parents import Family

    family = Family(tuple(adapters), (1.0,) * len(adapters))
    layers: list[dict[str, LowRank]] = [{} for _ in adapters]
    for site in family.sites():
        scales, updates = norm_scales(site, consistency), separated(site, conflict, removal)
        for found, adapter, scale, update in zip(layers, adapters, scales, updates, strict=True):
            if site.path in adapter.layers:
                found[site.path] = update.scaled(scale)
    return [replace(adapter, layers=found) for adapter, found in zip(adapters, layers, strict=True)]
