"""Low-rank weight updates: one layer of an adapter, and its mathematics in factor space.

An update of a layer with weight W is ΔW = scale · up · down with rank r far below the size of W, so
norms, inner products and singular values are computed from the factors at a cost of
O((d_in + d_out) r²), never from the dense matrix (``_core``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update of one linear or convolution layer (LoRA, Hu et al. 2021, arXiv:2106.09685, §4.1).

    Attributes:
        down: Linear (r, d_in); convolution (r, c_in, k_h, k_w).
        up: Linear (d_out, r); convolution (c_out, r, 1, 1).
        alpha: Network alpha; the update is scaled by alpha / r. None means that the scale is
            already in the factors.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim != self.down.ndim:
            raise ValueError(f"factors of {self.down.ndim} and {self.up.ndim} axes; 2 or 4 needed")
        if self.up.shape[1] != self.down.shape[0] or self.up.shape[2:] not in ((), (1, 1)):
            shapes = f"up {tuple(self.up.shape)}, down {tuple(self.down.shape)}"
            raise ValueError(f"factors do not fit together: {shapes}")

    @property
    def rank(self) -> int:
        """Number of rank-one terms r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha / r that the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / max(self.rank, 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the layer's weight: (d_out, d_in) or (c_out, c_in, k_h, k_w)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def matrices(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Up (d_out, r) times scale, and down (r, d_in · k_h · k_w), in ``dtype``."""
        return self.up.flatten(1).to(dtype) * self.scale, self.down.flatten(1).to(dtype)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense update ΔW in the shape of the layer's weight."""
        up, down = self.matrices(dtype)
        return (up @ down).reshape(self.weight_shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LowRank:
        """The same update on another device or in another dtype."""
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))

    def scaled(self, weight: float) -> LowRank:
        """The update times ``weight``, kept in alpha so that the factors stay as they are."""
        return replace(self, alpha=self.scale * weight * self.rank)

    def folded(self) -> LowRank:
        """The same update with the scale split evenly between both factors and alpha None."""
        root = abs(self.scale) ** 0.5
        sign = -1.0 if self.scale < 0 else 1.0
        return LowRank(self.down * root, self.up * (root * sign))


def zero(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> LowRank:
    """The update of rank 0 of a layer with a weight of ``shape``: nothing changes."""
    tail = (1,) * (len(shape) - 2)
    return LowRank(torch.zeros(0, *shape[1:], dtype=dtype), torch.zeros(shape[0], 0, *tail, dtype=dtype))


def _core(layer: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal Q_up (d_out, k), core (k, m) and Q_down (d_in, m) with ΔW = Q_up core Q_downᵀ."""
    up, down = layer.matrices()
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    return q_up, r_up @ r_down.T, q_down


def singular_values(layer: LowRank) -> Tensor:
    """Singular values of ΔW, descending, at most r of them, float64."""
    return torch.linalg.svdvals(_core(layer)[1])


def canonical(layer: LowRank) -> LowRank:
    """The gauge in which up = U √S and down = √S Vᵀ with the largest entry of each column of U positive.

    (up M, M⁻¹ down) is the same update for every invertible M; this form depends on ΔW alone
    (up to rounding and repeated singular values).
    """
    q_up, core, q_down = _core(layer)
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    left, right = q_up @ u, vt @ q_down.T
    peaks = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(peaks < 0, -1.0, 1.0).to(left)
    root = s.sqrt()
    up = left * signs * root
    down = right * signs.T * root[:, None]
    tail = layer.up.shape[2:]
    return LowRank(
        down.reshape(-1, *layer.down.shape[1:]).to(layer.down.dtype),
        up.reshape(up.shape + tail).to(layer.up.dtype),
    )


def truncate(layer: LowRank, rank: int) -> LowRank:
    """The best approximation of ΔW of the given rank (Eckart–Young), in canonical gauge."""
    full = canonical(layer)
    return LowRank(full.down[:rank].contiguous(), full.up[:, :rank].contiguous())


def inner(first: LowRank, second: LowRank) -> float:
    """Frobenius inner product ⟨ΔW₁, ΔW₂⟩, from r₁ × r₂ Gram matrices."""
    up_1, down_1 = first.matrices()
    up_2, down_2 = second.matrices()
    return float(((up_1.T @ up_2) * (down_1 @ down_2.T)).sum())


def norm(layer: LowRank) -> float:
    """Frobenius norm of ΔW."""
    return max(inner(layer, layer), 0.0) ** 0.5


def inner_products(layers: Sequence[LowRank], dtype: torch.dtype = torch.float64) -> Tensor:
    """All Frobenius inner products ⟨ΔWᵢ, ΔWⱼ⟩ of updates of one layer at once.

    Two Gram matrices of the stacked factors serve all pairs; sums of updates follow by bilinearity,
    as in ‖Σ wᵢ ΔWᵢ‖² = wᵀ T w.

    Args:
        layers: Updates of one layer, ranks may differ and may be 0.
        dtype: Arithmetic of the Gram matrices.

    Returns:
        T of shape (n, n), float64.
    """
    pairs = [layer.matrices(dtype) for layer in layers]
    up, down = torch.cat([u for u, _ in pairs], dim=1), torch.cat([d for _, d in pairs])
    products = ((up.T @ up) * (down @ down.T)).double()
    ranks = torch.tensor([layer.rank for layer in layers])
    owners = torch.eye(len(layers), dtype=torch.float64).repeat_interleave(ranks, dim=0)
    return owners.T @ products @ owners


def distance(first: LowRank, second: LowRank) -> float:
    """‖ΔW₁ − ΔW₂‖ by QR and not by Gram matrices, so that it is right down to float64 rounding."""
    pairs = [first.matrices(), second.matrices()]
    up = torch.cat([pairs[0][0], -pairs[1][0]], dim=1)
    down = torch.cat([pairs[0][1], pairs[1][1]])
    r_up, r_down = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    return float((r_up @ r_down.T).norm())


def cosine(first: LowRank, second: LowRank) -> float:
    """Cosine between two updates of one layer, in [-1, 1]; 0 where either is zero."""
    scale = norm(first) * norm(second)
    return inner(first, second) / scale if scale > 0 else 0.0


def concatenate(layers: list[LowRank]) -> LowRank:
    """The exact sum of updates as one of rank Σ rᵢ (FLoRA, arXiv:2409.05976, §3.2)."""
    folded = [layer.folded() for layer in layers]
    return LowRank(torch.cat([f.down for f in folded]), torch.cat([f.up for f in folded], dim=1))
