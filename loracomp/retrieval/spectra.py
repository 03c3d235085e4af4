"""The singular values of an update from its Gram matrices, and what they say in 13 numbers.

The squares of ΔW's singular values are the eigenvalues of s² Cᵀ (upᵀ up) C with C Cᵀ = down downᵀ: no QR
of tall factors, no dense matrix, and the same in every gauge.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP = 8
NAMES = (
    "log_norm", "log_relative_norm", "log_first", "stable_rank", "entropy_rank",
    *(f"share_{place}" for place in range(TOP)),
)  # fmt: skip
NUMBERS = len(NAMES)
_TINY = 1e-30
_JITTER = 1e-14


def squared_singular_values(up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    """Squares of the singular values of scale · up · down.

    Args:
        up: upᵀ up, shape (n, r, r), float64.
        down: down downᵀ, shape (n, r, r), float64.
        scale: Shape (n,).

    Returns:
        Shape (n, r), descending, not negative.
    """
    root = _root(down)
    squares = torch.linalg.eigvalsh(root.mT @ up @ root).flip(1)
    return squares.clamp_min(0) * scale[:, None].square()


def _root(gram: Tensor) -> Tensor:
    """C with C Cᵀ = gram: Cholesky, or eigenvectors where the gram has no full rank."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype)
    root, failed = torch.linalg.cholesky_ex(gram + _JITTER * trace[:, None, None] * eye)
    broken = failed > 0
    if bool(broken.any()):
        values, vectors = torch.linalg.eigh(gram[broken])
        root = root.clone()
        root[broken] = vectors * values.clamp_min(0).sqrt()[:, None]
    return root


def spectrum_features(squares: Tensor, weight_norm: Tensor) -> Tensor:
    """The numbers of :data:`NAMES` for each layer.

    Args:
        squares: Squared singular values, shape (n, r), descending.
        weight_norm: ‖W‖ of each layer, shape (n,); NaN where it is not known, and so is its logarithm then.

    Returns:
        Shape (n, 13), float32. Logarithms are natural, shares sum to 1 at most; ranks are 0 and shares 0
        where the update is zero.
    """
    total = squares.sum(1)
    shares = squares / total.clamp_min(_TINY)[:, None]
    zero = total <= _TINY
    norm = total.clamp_min(_TINY).sqrt().log()
    first = squares[:, 0].clamp_min(_TINY)
    entropy = -(shares * shares.clamp_min(_TINY).log()).sum(1)
    top = torch.zeros(len(squares), TOP, dtype=squares.dtype)
    top[:, : min(TOP, squares.shape[1])] = shares[:, :TOP]
    stable = (total / first).masked_fill(zero, 0.0)
    ranks = entropy.exp().masked_fill(zero, 0.0)
    columns = (norm, norm - weight_norm.double().log(), first.sqrt().log(), stable, ranks)
    return torch.cat([torch.stack(columns, 1), top], 1).float()
