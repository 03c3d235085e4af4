"""The layers of a base as a fixed list of sites, so that every adapter's features have the same places.

A site is a layer that an adapter may change. Adapters that leave a site alone have a gap there, which
is masked and never read as a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

from loracomp.bases import get_base, modules

GROUPS = ("text", "context", "attention", "mlp", "convolution", "projection", "other")
_CONTEXT = (".attn2.to_k", ".attn2.to_v", ".add_k_proj", ".add_v_proj", ".add_q_proj", ".to_add_out")
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_PROJECTIONS = (".proj_in", ".proj_out", ".proj_mlp")


@dataclass(frozen=True)
class Site:
    """One layer.

    Attributes:
        path: Module path in the base.
        rows: Output width.
        columns: Input width, all kernel positions of a convolution.
        group: One of :data:`GROUPS`.
        depth: How far through its component the layer lies, in [0, 1].
    """

    path: str
    rows: int
    columns: int
    group: str
    depth: float


@dataclass(frozen=True)
class SiteTable:
    """The sites of a base in a fixed order."""

    base: str
    sites: tuple[Site, ...]

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of each site by path."""
        return {site.path: place for place, site in enumerate(self.sites)}

    def __len__(self) -> int:
        return len(self.sites)

    def group(self, *names: str) -> tuple[int, ...]:
        """Positions of the sites in some groups, ascending."""
        return tuple(place for place, site in enumerate(self.sites) if site.group in names)

    @cached_property
    def cross(self) -> tuple[int, ...]:
        """Positions of the layers that read the text states: K and V of cross-attention."""
        ends = (".attn2.to_k", ".attn2.to_v")
        return tuple(place for place, site in enumerate(self.sites) if site.path.endswith(ends))


def group_of(path: str) -> str:
    """Which of :data:`GROUPS` a layer belongs to."""
    if path.startswith("text_encoder"):
        return "text"
    if path.endswith(_CONTEXT):
        return "context"
    if path.endswith(_ATTENTION):
        return "attention"
    if ".ff" in path:
        return "mlp"
    if ".resnets." in path or "samplers." in path or path.endswith(("conv_in", "conv_out")):
        return "convolution"
    return "projection" if path.endswith(_PROJECTIONS) else "other"


@cache
def site_table(base: str) -> SiteTable:
    """The sites of a known base; raises :class:`~loracomp.errors.UnknownNameError` for any other."""
    get_base(base)
    shapes = modules(base)
    counts: dict[str, int] = {}
    for path in shapes:
        counts[path.partition(".")[0]] = counts.get(path.partition(".")[0], 0) + 1
    seen: dict[str, int] = {}
    sites = []
    for path, shape in shapes.items():
        part = path.partition(".")[0]
        place = seen.get(part, 0)
        seen[part] = place + 1
        depth = place / max(counts[part] - 1, 1)
        sites.append(Site(path, shape[0], prod(shape[1:]), group_of(path), depth))
    return SiteTable(base, tuple(sites))
