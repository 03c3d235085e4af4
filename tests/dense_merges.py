"""Dense float64 references of the merge methods, written from the papers and independent of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.lowrank import LowRank

SHAPES = {
    "text_encoder.layers.0.q_proj": (12, 10),
    "unet.blocks.0.conv": (9, 4, 3, 3),
    "unet.blocks.0.proj": (11, 7, 1, 1),
    "unet.blocks.0.to_q": (14, 16),
    "unet.blocks.1.to_k": (20, 8),
}


def layer(shape: tuple[int, ...], rank: int, generator: torch.Generator, alpha: float | None) -> LowRank:
    """A random float64 update."""
    tail = (1,) * (len(shape) - 2)
    down = torch.randn((rank, *shape[1:]), generator=generator, dtype=torch.float64)
    return LowRank(
        down, torch.randn((shape[0], rank, *tail), generator=generator, dtype=torch.float64), alpha
    )


def adapter(
    seed: int,
    rank: int,
    alpha: float | None = None,
    leave_out: Sequence[str] = (),
    size: float = 1.0,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> Adapter:
    """A random adapter on the layers of ``shapes`` but some."""
    generator = torch.Generator().manual_seed(seed)
    layers = {p: layer(s, rank, generator, alpha) for p, s in shapes.items() if p not in leave_out}
    return Adapter(layers, "custom", f"a{seed}").scaled(size)


def family() -> list[Adapter]:
    """Three adapters of different ranks, alphas and layers."""
    return [
        adapter(1, 3, 1.5),
        adapter(2, 2, None, ["unet.blocks.0.conv"]),
        adapter(3, 4, 8.0, ["text_encoder.layers.0.q_proj", "unet.blocks.1.to_k"]),
    ]


def deltas(adapters: Sequence[Adapter], path: str) -> list[Tensor]:
    """The dense ΔW of each adapter as matrices, zeros where a layer is missing."""
    out = []
    for one in adapters:
        if path in one.layers:
            item = one.layers[path]
            up = item.up.double().reshape(item.up.shape[0], -1)
            scale = 1.0 if item.alpha is None else item.alpha / item.down.shape[0]
            out.append(scale * up @ item.down.double().reshape(item.down.shape[0], -1))
        else:
            shape = SHAPES[path]
            out.append(torch.zeros(shape[0], torch.Size(shape[1:]).numel(), dtype=torch.float64))
    return out


def dense(merged: Adapter, path: str) -> Tensor:
    """The merged ΔW as a matrix."""
    return deltas([merged], path)[0]


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """Eckart–Young."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]


def weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ ΔWᵢ."""
    return torch.stack([w * p for w, p in zip(weights, parts, strict=True)]).sum(0)


def elected(parts: Sequence[Tensor]) -> Tensor:
    """Mean of the entries that have the sign of the sum, entry by entry in Python."""
    out = torch.zeros_like(parts[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            values = [float(p[i, j]) for p in parts]
            sign = 1 if sum(values) > 0 else -1
            agreeing = [v for v in values if v * sign > 0]
            out[i, j] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def trimmed(matrix: Tensor, keep: int, drop: int = 0) -> Tensor:
    """The entries at places drop + 1 … drop + keep of the order by descending magnitude."""
    order = matrix.abs().flatten().argsort(descending=True)[drop : drop + keep]
    out = torch.zeros(matrix.numel(), dtype=matrix.dtype)
    out[order] = matrix.flatten()[order]
    return out.reshape(matrix.shape)


def ties(parts: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """TIES-Merging, arXiv:2306.01708, §3.2."""
    keep = max(int(density * parts[0].numel()), 1)
    return elected([w * trimmed(p, keep) for w, p in zip(weights, parts, strict=True)])


def breadcrumbs(parts: Sequence[Tensor], weights: Sequence[float], density: float, outliers: float) -> Tensor:
    """Model Breadcrumbs, arXiv:2312.06795, §3."""
    count = parts[0].numel()
    drop, keep = int(outliers * count), int(density * count)
    return weighted([trimmed(p, keep, drop) for p in parts], weights)


def lion(
    parts: Sequence[Tensor], peaks: Sequence[float], weights: Sequence[float], rho: float, limit: float
) -> Tensor:
    """Norm consistency and orthogonality on dense matrices."""
    sizes = [float(p.norm()) for p in parts]
    scale = parts[0].numel() ** 0.5
    on = [s > 0 and s / scale >= 0.01 * peak for s, peak in zip(sizes, peaks, strict=True)]
    logs = [torch.tensor(s, dtype=torch.float64).log() for s, alive in zip(sizes, on, strict=True) if alive]
    target = float(torch.stack(logs).mean().exp())
    factors = [
        min(max((target / s) ** rho, 0.5), 2.0) if alive else 1.0 for s, alive in zip(sizes, on, strict=True)
    ]
    turned: list[Tensor] = []
    for index, part in enumerate(parts):
        current = part
        for other in range(index):
            if sizes[index] and sizes[other]:
                cosine = float((parts[other] * part).sum()) / (sizes[other] * sizes[index])
                if abs(cosine) > limit:
                    current = current - turned[other] @ torch.linalg.pinv(turned[other], rtol=1e-9) @ current
        turned.append(current)
    return weighted(turned, [w * f for w, f in zip(weights, factors, strict=True)])
