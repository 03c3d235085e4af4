"""The global adapter: the sum of all adapters in its few strongest directions, gated like one more.

AutoLoRA's training code (arXiv:2508.02107) appends an adapter of rank 2 that it makes of all others by a
decomposition; the function itself was not released. Here it is the best approximation of Σ BᵢAᵢ of that rank:
P Pᵀ Σ BᵢAᵢ with P = U Z the first left singular vectors, U all up factors. P Pᵀ (U h) = P (Zᵀ UᵀU) h needs
only the hidden values that are there, so the global adapter follows weights and masks of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}


@torch.no_grad()
def directions(up: Tensor, down: Tensor, rank: int, rounds: int = 12) -> Tensor:
    """Z, shape (…, C, rank): U Z are the first left singular vectors of U D, by subspace iteration.

    U D Dᵀ Uᵀ (U Z) = U (D Dᵀ UᵀU Z), so all of it happens in the C × C Gram matrices.

    Args:
        up: UᵀU, shape (…, C, C).
        down: D Dᵀ, shape (…, C, C).
        rank: Number of vectors.
        rounds: Iterations; the error falls by the squared ratio of singular values in each.
    """
    size = up.shape[-1]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, rank, generator=generator).to(up)
    z = _orthonormal(start.expand(*up.shape[:-2], size, rank), up)
    for _ in range(rounds):
        z = _orthonormal(down @ (up @ z), up)
    return z


def _orthonormal(z: Tensor, gram: Tensor) -> Tensor:
    """Columns of z made orthonormal in the inner product of a Gram matrix; nothing stays nothing."""
    z = z / z.norm(dim=-2, keepdim=True).clamp_min(1e-30)
    inner = z.mT @ gram @ z
    trace = inner.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    root, _ = torch.linalg.cholesky_ex(inner + eye * (trace * _ROUNDING[z.dtype] + 1e-30))
    return torch.linalg.solve_triangular(root, z.mT, upper=False).mT
