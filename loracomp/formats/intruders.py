"""Intruder dimensions: directions that an update adds to the leading ones of a weight.

A leading left singular vector of W + ΔW is an intruder when no left singular vector of W is near it
("LoRA vs Full Fine-tuning", Shuttleworth et al., arXiv:2410.21228, §3). They mark where a model forgets
what it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.lowrank import LowRank, singular_values

TOP = 10
EPSILON = 0.5


@dataclass(frozen=True)
class Intruders:
    """Intruder dimensions of one layer.

    Attributes:
        count: Number among the leading singular vectors.
        spike: σ₁(ΔW) / σ_k(W), how far the update stands above the k-th direction of the weight.
    """

    count: int
    spike: float


def intruders(weight: Tensor, layer: LowRank, top: int = TOP, epsilon: float = EPSILON) -> Intruders:
    """Intruder dimensions that an update makes.

    Where the update is smaller than half the gap of W's spectrum behind the k-th value, no new
    direction can have entered (Weyl and Wedin) and nothing is decomposed a second time.

    Args:
        weight: The base's weight (d_out, d_in) or (c_out, c_in, k_h, k_w).
        layer: The update of the same shape.
        top: Number k of leading singular vectors that are looked at.
        epsilon: Largest |cosine| of an intruder with any singular vector of the weight.
    """
    matrix = weight.double().flatten(1)
    up, down = layer.matrices()
    left, values = _left(matrix)
    k = min(top, len(values))
    largest = float(singular_values(layer)[0]) if layer.rank else 0.0
    edge = float(values[k - 1])
    spike = largest / edge if edge > 0 else float("inf")
    gap = edge - float(values[k]) if k < len(values) else edge
    if 2 * largest < gap:
        return Intruders(0, spike)
    moved = _left(matrix + up @ down)[0][:, :k]
    nearest = (left.T @ moved).abs().amax(0)
    return Intruders(int((nearest < epsilon).sum()), spike)


def _left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (d_out, min) and values, descending, from the smaller Gram matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    values, vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    if wide:
        return vectors, values
    return (matrix @ vectors) / values.clamp_min(1e-12), values
