"""How many ranks a merged layer gets, and which: fair to each parent, or the best for the sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.lowrank import LowRank

SHARE = 0.99


@dataclass(frozen=True)
class RankRule:
    """A request for a rank.

    Attributes:
        kind: ``limit``: at most ``limit``. ``auto``: the fewest ranks that keep ``share`` of the energy
            ‖ΔWᵢ‖² of every parent by itself. ``energy``: the fewest that keep ``share`` of the energy
            of the sum. ``default``: what the method does by itself.
        limit: At least 1 for ``limit``.
        share: In (0, 1].
    """

    kind: str = "default"
    limit: int = 0
    share: float = SHARE

    @classmethod
    def parse(cls, rank: int | str | None) -> RankRule:
        """``None``, a number, ``auto``, ``energy``, ``auto:0.95`` or ``energy:0.95``.

        Raises:
            UsageError: Anything else.
        """
        if rank is None:
            return cls()
        if isinstance(rank, int) or rank.isdigit():
            if int(rank) >= 1:
                return cls("limit", int(rank))
            raise UsageError(f"rank {rank}: a layer needs at least rank 1")
        kind, colon, text = rank.partition(":")
        try:
            share = float(text) if colon else SHARE
        except ValueError:
            share = 0.0
        if kind not in ("auto", "energy") or not 0 < share <= 1:
            raise UsageError(f"rank {rank!r}: give a number, auto, energy, or a share such as energy:0.95")
        return cls(kind, 0, share)

    def or_limit(self, limit: int) -> RankRule:
        """The rule with ``limit`` in place of the default."""
        return RankRule("limit", limit, self.share) if self.kind == "default" else self

    def count(self, values: Tensor) -> int:
        """Ranks to keep of a matrix with these singular values (descending)."""
        if self.kind == "limit":
            return min(self.limit, len(values))
        return _enough(values, self.share)


def _enough(values: Tensor, share: float) -> int:
    """Fewest leading singular values with ``share`` of the energy; 0 where all are zero."""
    energy = values.double().square().cumsum(0)
    if not len(values) or float(energy[-1]) == 0:
        return 0
    # Rounding must not add ranks: 1 - 1e-12 is all.
    return int((energy < min(share, 1 - 1e-12) * energy[-1]).sum()) + 1


class Pencil:
    """Σ ΔWᵢ in orthonormal coordinates: Q_up (m, k), Q_down (n, l), and small cores C with Q_up C Q_downᵀ.

    Args:
        parts: The updates wᵢ ΔWᵢ of one layer.
    """

    def __init__(self, parts: Sequence[LowRank]) -> None:
        pairs = [part.matrices() for part in parts]
        self.shape = parts[0].weight_shape
        self.q_up, r_up = torch.linalg.qr(torch.cat([up for up, _ in pairs], dim=1))
        self.q_down, r_down = torch.linalg.qr(torch.cat([down for _, down in pairs]).T)
        ranks = [part.rank for part in parts]
        blocks = zip(r_up.split(ranks, 1), r_down.split(ranks, 1), strict=True)
        self.cores = [up @ down.T for up, down in blocks]

    @cached_property
    def core(self) -> Tensor:
        """The core of the sum."""
        return torch.stack(self.cores).sum(0)

    @cached_property
    def sum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular value decomposition U, s, Vᵀ of the core of the sum."""
        return _svd(self.core)

    @cached_property
    def each(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Singular value decompositions of the parts' cores, those that are not zero."""
        return [_svd(core) for core in self.cores if bool(core.any())]

    def layer(self, core: Tensor) -> LowRank:
        """The update with a core, balanced: up = U √S, down = √S Vᵀ, ranks of size zero left out."""
        u, s, vt = _svd(core)
        kept = s > s[:1] * 1e-14
        u, s, vt = u[:, kept], s[kept].sqrt(), vt[kept]
        tail = (1,) * (len(self.shape) - 2)
        down = s[:, None] * (vt @ self.q_down.T)
        up = self.q_up @ u * s
        return LowRank(down.reshape(-1, *self.shape[1:]), up.reshape(*up.shape, *tail))


def _svd(core: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not core.numel():
        return core[:, :0], core.new_zeros(0), core[:0]
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    return u, s, vt


def best(parts: Sequence[LowRank], rule: RankRule) -> LowRank:
    """The best approximation of Σ wᵢ ΔWᵢ at the rank that the rule asks for (Eckart–Young), float64."""
    pencil = Pencil(parts)
    u, s, vt = pencil.sum
    count = len(s) if rule.kind == "default" else rule.count(s)
    return pencil.layer(u[:, :count] * s[:count] @ vt[:count])


def fair(parts: Sequence[LowRank], rule: RankRule) -> LowRank:
    """Σ wᵢ ΔWᵢ in few ranks such that no part loses much more of itself than another, float64.

    A truncated sum keeps what is large, so that a quiet adapter beside a loud one vanishes. Here each
    part has a right to its own leading directions: ranks go one by one to the part with the largest
    relative residual ‖ΔWᵢ − ΔWᵢ[kᵢ]‖ / ‖ΔWᵢ‖, and the whole sum is projected onto the span of the
    chosen directions, on the side of the outputs or of the inputs. Of these two and the plain best
    approximation, the one whose worst-off part loses least is taken. The weights cancel in relative
    residuals; they act on the sum alone.
    """
    if rule.kind == "energy":
        return best(parts, rule)
    pencil = Pencil(parts)
    spectra = [s for _, s, _ in pencil.each]
    if not spectra:
        return pencil.layer(pencil.core)
    if rule.kind == "auto":
        counts = [_enough(s, rule.share) for s in spectra]
    else:
        total = sum(len(s) for s in spectra) if rule.kind == "default" else rule.limit
        counts = allocated(spectra, total)
    lefts = torch.cat([u[:, :k] for (u, _, _), k in zip(pencil.each, counts, strict=True)], dim=1)
    rights = torch.cat([vt[:k] for (_, _, vt), k in zip(pencil.each, counts, strict=True)]).T
    u, _, vt = pencil.sum
    count = sum(counts)
    bases = [(u[:, :count], None), (None, vt[:count].T), (_span(lefts), None), (None, _span(rights))]
    left, right = min(bases, key=lambda sides: _worst(pencil, *sides))
    return pencil.layer(_projected(pencil.core, left, right))


def allocated(spectra: Sequence[Tensor], total: int) -> list[int]:
    """Ranks of each part such that the largest relative residual is as small as ``total`` ranks allow.

    Args:
        spectra: Singular values of each part, descending, not all zero.
        total: Ranks to give away; less are given where the parts have no more.
    """
    tails = []
    for values in spectra:
        energy = values.double().square()
        rest = energy.flip(0).cumsum(0).flip(0)
        tails.append([*(rest / rest[0]).tolist(), 0.0])
    counts = [0] * len(spectra)
    for _ in range(min(total, sum(len(values) for values in spectra))):
        open_ = [i for i, values in enumerate(spectra) if counts[i] < len(values)]
        chosen = max(open_, key=lambda i: (tails[i][counts[i]], -counts[i]))
        counts[chosen] += 1
    return counts


def _span(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _projected(core: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    core = core if left is None else left @ (left.T @ core)
    return core if right is None else core @ right @ right.T


def _worst(pencil: Pencil, left: Tensor | None, right: Tensor | None) -> float:
    """The largest relative residual of a part after the projection."""
    losses = []
    for u, s, vt in pencil.each:
        inside = (s[:, None] * vt) @ right if right is not None else u * s
        inside = inside if left is None else left.T @ inside
        total = float(s.square().sum())
        losses.append(max(total - float(inside.square().sum()), 0.0) / total)
    # Below the rounding of the squares all are equal, and the first, the plain best one, is taken.
    return round(max(losses), 12)
