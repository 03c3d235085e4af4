"""AutoLoRA's retriever, rebuilt as a baseline (Li et al. 2025, arXiv:2508.02107, §3.1).

One learned probe per layer: the layer answers with ΔW x, which no gauge and no rank changes. A linear map
per kind of layer makes tokens, two CLIP layers with a causal mask read them, and their mean is compared
with the text encoder's own vector. Nothing of it is masked where a layer is absent: its answer is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.lowrank import LowRank
from loracomp.retrieval.sites import Site

Answers = dict[int, Tensor]


class AutoLoRA(nn.Module):
    """Adapters to unit vectors of the text encoder's width.

    Args:
        sites: The layers that adapters may change.
        width: Width of the text encoder's vectors, 768 for CLIP-L.
        heads: Attention heads.
        layers: Depth.
        causal: Whether early layers cannot see later ones, as in the published code.
    """

    def __init__(
        self, sites: Sequence[Site], width: int = 768, heads: int = 12, layers: int = 2, causal: bool = True
    ) -> None:
        super().__init__()
        self.kinds = [_kind(site) for site in sites]
        self.probes = nn.ParameterList([nn.Parameter(torch.randn(site.columns)) for site in sites])
        shapes = {kind: site.rows for kind, site in zip(self.kinds, sites, strict=True)}
        self.maps = nn.ModuleDict({kind: nn.Linear(rows, width) for kind, rows in shapes.items()})
        self.rows = [site.rows for site in sites]
        self.places = nn.Parameter(torch.zeros(len(sites), width))
        self.layers = nn.ModuleList([_Layer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        mask = torch.full((len(sites), len(sites)), float("-inf")).triu(1) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, adapters: Sequence[dict[int, LowRank]]) -> Tensor:
        """Adapters as layers by position; shape (n, width)."""
        tokens = torch.stack([self._token(place, adapters) for place in range(len(self.kinds))], 1)
        hidden = tokens + self.places
        for layer in self.layers:
            hidden = layer(hidden, self.mask)
        return F.normalize(self.norm(hidden).mean(1), dim=1)

    def _token(self, place: int, adapters: Sequence[dict[int, LowRank]]) -> Tensor:
        probe = self.probes[place]
        answers = [
            _answer(adapter[place], probe) if place in adapter else probe.new_zeros(self.rows[place])
            for adapter in adapters
        ]
        return self.maps[self.kinds[place]](torch.stack(answers))


def _answer(layer: LowRank, probe: Tensor) -> Tensor:
    """ΔW x for one probe, shape (rows,)."""
    down = layer.down.flatten(1).to(probe)
    return layer.up.flatten(1).to(probe) @ (down @ probe) * layer.scale


def _kind(site: Site) -> str:
    """Layers that share a linear map: those of one name and one width."""
    name = "-".join(part for part in site.path.split(".")[-3:] if not part.isdigit())
    return f"{name}-{site.rows}"


class _Layer(nn.Module):
    """A pre-norm layer as in CLIP's text tower, with the fast GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Shape (n, layers, width) in and out."""
        inner = self.first(hidden)
        hidden = hidden + self.attention(inner, inner, inner, attn_mask=mask, need_weights=False)[0]
        inner = self.wide(self.second(hidden))
        return hidden + self.back(inner * torch.sigmoid(1.702 * inner))
