"""Merges that act on the entries of ΔW: formed in blocks of rows, and brought back into factors.

One layer's result is dense for a moment (its largest is what bounds the memory); the parents' updates
are never dense as a whole, except while a threshold over all magnitudes of one of them is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from loracomp.fusion.offline.parents import Site
from loracomp.fusion.offline.rank import RankRule
from loracomp.lowrank import LowRank

_BLOCK_ENTRIES = 1 << 20
_EXACT_SIDE = 512
_OVERSAMPLING = 16
_POWER_STEPS = 3

Prune = Callable[[Tensor], Tensor]
"""Rows of one parent's ΔW, in order, to the same rows with entries dropped and the others rescaled."""
Fuse = Callable[[Tensor], Tensor]
"""The weighted, pruned rows of all parents (n, rows, columns) to the merged rows."""


def blocks(layer: LowRank) -> Iterator[tuple[int, Tensor]]:
    """Dense rows of an update in blocks of about a million entries, float32, and where each begins."""
    up, down = layer.matrices(torch.float32)
    step = max(_BLOCK_ENTRIES // max(down.shape[1], 1), 1)
    for row in range(0, up.shape[0], step):
        yield row, up[row : row + step] @ down


def magnitudes(layer: LowRank) -> Tensor:
    """|ΔW|, all entries, of the same bits as :func:`blocks` gives."""
    return torch.cat([block.abs().flatten() for _, block in blocks(layer)])


def merged(site: Site, prunes: Sequence[Prune], fuse: Fuse) -> Tensor:
    """The dense result of an elementwise merge, shape of ``site.matrix``, float32.

    Args:
        site: The layer.
        prunes: One for each parent; a parent without the layer counts as zero.
        fuse: How the parents' rows become one.
    """
    out = torch.empty(site.matrix)
    weights = torch.tensor(site.weights)
    for parts in zip(*(blocks(update) for update in site.updates), strict=True):
        rows = torch.stack([prune(block) for prune, (_, block) in zip(prunes, parts, strict=True)])
        start = parts[0][0]
        out[start : start + rows.shape[1]] = fuse(rows * weights[:, None, None])
    return out


def total(rows: Tensor) -> Tensor:
    """The plain sum over parents."""
    return rows.sum(0)


def elected(rows: Tensor) -> Tensor:
    """The mean over those parents whose entry has the sign of the sum (TIES, arXiv:2306.01708, §3.2)."""
    sign = rows.sum(0).sign()
    agreeing = (rows.sign() == sign) & (rows != 0)
    return (rows * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def factored(dense: Tensor, shape: tuple[int, ...], rule: RankRule) -> LowRank:
    """A dense update at the rank that a rule asks for (``auto`` is ``energy`` here), float32.

    The best approximation where the smaller side is 512 at most; else that of a randomised range finder with
    16 spare directions and three power steps (Halko et al., arXiv:0909.4061, §4.4), whose number of
    directions doubles until the energy asked for is reached.
    """
    u, s, vt = _decomposed(dense, rule)
    count = max(rule.count(s) if rule.kind == "limit" else _held(s, dense, rule.share), 0)
    root = s[:count].sqrt()
    tail = (1,) * (len(shape) - 2)
    down = (root[:, None] * vt[:count]).reshape(count, *shape[1:])
    return LowRank(down.contiguous(), (u[:, :count] * root).reshape(shape[0], count, *tail).contiguous())


def _held(values: Tensor, dense: Tensor, share: float) -> int:
    """Fewest singular values that hold a share of the whole energy, all of them where they do not."""
    energy = float(dense.double().square().sum())
    if energy == 0:
        return 0
    sums = values.double().square().cumsum(0)
    return min(int((sums < min(share, 1 - 1e-6) * energy).sum()) + 1, len(values))


def _decomposed(dense: Tensor, rule: RankRule) -> tuple[Tensor, Tensor, Tensor]:
    side = min(dense.shape)
    if side <= _EXACT_SIDE:
        return _exact(dense)
    if rule.kind == "limit":
        return _randomised(dense, rule.limit) if rule.limit < side // 2 else _exact(dense)
    width = 64
    while width < side // 2:
        found = _randomised(dense, width)
        if _held(found[1][:width], dense, rule.share) < width:
            return found
        width *= 2
    return _exact(dense)


def _exact(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    return u, s, vt


def _randomised(dense: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(dense.shape[1], min(rank + _OVERSAMPLING, *dense.shape), generator=generator)
    for _ in range(_POWER_STEPS):
        probe = torch.linalg.qr(dense.T @ torch.linalg.qr(dense @ probe).Q).Q
    left = torch.linalg.qr(dense @ probe).Q
    u, s, vt = torch.linalg.svd(left.T @ dense, full_matrices=False)
    return left @ u, s, vt


def entries(site: Site) -> int:
    """Number of entries of ΔW."""
    return prod(site.shape)
