"""Layers left out in training, in the patterns in which real adapters leave them out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loracomp.retrieval.sites import SiteTable
from loracomp.retrieval.towers import Batch

PATTERNS = ("all", "some", "context", "attention", "no convolution", "first half", "last half")
_WEIGHTS = (0.35, 0.3, 0.07, 0.1, 0.08, 0.05, 0.05)
_MOST = 0.8


def keeps(table: SiteTable) -> Tensor:
    """Layers that each fixed pattern keeps, shape (patterns, sites); all for ``all`` and ``some``."""
    rows = []
    for pattern in PATTERNS:
        kept = []
        for site in table.sites:
            kept.append(
                {
                    "context": site.group == "context",
                    "attention": site.group in ("context", "attention", "projection"),
                    "no convolution": site.group != "convolution",
                    "first half": site.depth <= 0.5,
                    "last half": site.depth >= 0.5,
                }.get(pattern, True)
            )
        rows.append(kept)
    return torch.tensor(rows)


def thinned(rows: Batch, patterns: Tensor, cross: Tensor, source: torch.Generator) -> Batch:
    """Adapters with layers left out, a pattern each; one that would lose all its layers keeps them.

    Without any layer that reads the text, an adapter answers no text probe either.

    Args:
        rows: The adapters.
        patterns: See :func:`keeps`.
        cross: Which layers read the text, shape (sites,), bool.
        source: Random numbers, of the CPU.
    """
    count, sites = rows.present.shape
    chosen = torch.multinomial(torch.tensor(_WEIGHTS), count, replacement=True, generator=source)
    shares = torch.rand(count, 1, generator=source) * _MOST
    some = torch.rand(count, sites, generator=source) >= shares
    kept = patterns[chosen] & torch.where((chosen == PATTERNS.index("some"))[:, None], some, True)
    present = rows.present & kept.to(rows.present.device)
    present = torch.where(present.any(1, keepdim=True), present, rows.present)
    heard = rows.heard & (present & cross.to(present.device)).any(1)
    return replace(rows, present=present, heard=heard)
