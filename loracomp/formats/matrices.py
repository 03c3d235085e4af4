"""Updates that are not stored as one product of two factors, and their way into factors.

A matrix here is known by rows that can be formed block by block, so norms and sketches never hold
the dense update at once; where its rank is small the factors follow exactly, otherwise the best
approximation is taken and its error measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loracomp.lowrank import LowRank

_BLOCK_ENTRIES = 1 << 22
_OVERSAMPLING = 16
_POWER_STEPS = 3


class Matrix(Protocol):
    """A scaled update as a matrix: output rows by flattened input columns, float32."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def rank_bound(self) -> int:
        """A number that the rank does not exceed, and the rank of ``factors``."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, dense."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """Exact factors up (rows, rank_bound) and down (rank_bound, columns)."""


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: (up₁ down₁) ∘ (up₂ down₂) times scale (FedPara, arXiv:2108.06098, §2.1)."""

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.up_1.shape[0], self.down_1.shape[1]

    @property
    def rank_bound(self) -> int:
        """Product of the ranks of the two products."""
        return self.up_1.shape[1] * self.up_2.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, dense."""
        first = self.up_1[start:stop] @ self.down_1
        return first * (self.up_2[start:stop] @ self.down_2) * self.scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """Row-wise Khatri–Rao products of the ups and of the downs: exact, rank r₁ r₂."""
        up = (self.up_1[:, :, None] * self.up_2[:, None, :]).flatten(1)
        down = (self.down_1[:, None, :] * self.down_2[None, :, :]).flatten(0, 1)
        return up * self.scale, down


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: first ⊗ (up down) times scale (LyCORIS, arXiv:2309.14859, §3.3).

    Attributes:
        first: The left matrix (a, b).
        up: Left factor of the right matrix (c, r); None where the right matrix is not factored.
        down: Right factor (r, e), or the right matrix (c, e) itself.
        scale: Factor of the product.
    """

    first: Tensor
    up: Tensor | None
    down: Tensor
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        second = self.down.shape[0] if self.up is None else self.up.shape[0]
        return self.first.shape[0] * second, self.first.shape[1] * self.down.shape[1]

    @property
    def rank_bound(self) -> int:
        """Rank bound of the left matrix times that of the right one."""
        right = min(self.down.shape) if self.up is None else self.down.shape[0]
        return min(self.first.shape) * right

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, dense."""
        second = self.down if self.up is None else self.up @ self.down
        index = torch.arange(start, stop)
        left = self.first[index // second.shape[0]] * self.scale
        return (left[:, :, None] * second[index % second.shape[0]][:, None, :]).flatten(1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(X ⊗ U)(Y ⊗ V) for first = X Y and right = U V, one of X, Y being the identity."""
        rows, columns = self.first.shape
        x, y = (self.first, torch.eye(columns)) if columns <= rows else (torch.eye(rows), self.first)
        u, v = self.up, self.down
        if u is None:
            u, v = _trivial(self.down)
        return _kron(x, u) * self.scale, _kron(y, v)


@dataclass(frozen=True, eq=False)
class Dense:
    """A full difference."""

    values: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def rank_bound(self) -> int:
        """The smaller side."""
        return min(self.values.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop."""
        return self.values[start:stop]

    def factors(self) -> tuple[Tensor, Tensor]:
        """The matrix and an identity of its smaller side."""
        return _trivial(self.values)


def _kron(left: Tensor, right: Tensor) -> Tensor:
    """left ⊗ right; torch.kron refuses some strides of one-row matrices."""
    rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    return (left[:, None, :, None] * right[None, :, None, :]).reshape(rows, columns)


def _trivial(values: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = values.shape
    return (torch.eye(rows), values) if rows <= columns else (values, torch.eye(columns))


def blocks(matrix: Matrix, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Dense blocks of rows start to stop with the row each begins at, 16 MiB at most each."""
    rows, columns = matrix.size
    step = max(_BLOCK_ENTRIES // max(columns, 1), 1)
    end = rows if stop is None else stop
    for row in range(start, end, step):
        yield row, matrix.rows(row, min(row + step, end))


def norm(matrix: Matrix) -> float:
    """Frobenius norm."""
    return sum(float(block.double().square().sum()) for _, block in blocks(matrix)) ** 0.5


@dataclass(frozen=True)
class Reduced:
    """Factors of a matrix, and ‖matrix − up · down‖ / ‖matrix‖ (0 where exact up to rounding)."""

    layer: LowRank
    error: float


def reduce(matrix: Matrix, shape: tuple[int, ...], limit: int) -> Reduced:
    """A matrix as a layer's update of rank ``limit`` at most, float32.

    Exact where ``rank_bound`` or the smaller side is within the limit; else the best approximation
    that a randomised range finder with three power steps gives (Halko et al., arXiv:0909.4061, §4.4).

    Args:
        matrix: The update.
        shape: Shape of the layer's weight.
        limit: Largest rank, at least 1.
    """
    rows, columns = matrix.size
    tail = (1,) * (len(shape) - 2)
    if min(matrix.rank_bound, rows, columns) <= limit:
        small = matrix.rank_bound <= min(rows, columns)
        up, down = matrix.factors() if small else _trivial(_whole(matrix))
        error = 0.0
    else:
        up, down = _approximate(matrix, limit)
        error = _error(matrix, up, down)
    rank = up.shape[1]
    down = down.contiguous().reshape(rank, *shape[1:])
    return Reduced(LowRank(down, up.contiguous().reshape(rows, rank, *tail)), error)


def _whole(matrix: Matrix) -> Tensor:
    return torch.cat([block for _, block in blocks(matrix)])


def _approximate(matrix: Matrix, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = min(rank + _OVERSAMPLING, *matrix.size)
    probe = torch.randn(matrix.size[1], width, generator=generator)
    for _ in range(_POWER_STEPS):
        left = torch.linalg.qr(_times(matrix, probe)).Q
        probe = torch.linalg.qr(_transposed_times(matrix, left)).Q
    left = torch.linalg.qr(_times(matrix, probe)).Q
    u, s, vt = torch.linalg.svd(_transposed_times(matrix, left).T, full_matrices=False)
    root = s[:rank].sqrt()
    return left @ u[:, :rank] * root, root[:, None] * vt[:rank]


def _times(matrix: Matrix, right: Tensor) -> Tensor:
    return torch.cat([block @ right for _, block in blocks(matrix)])


def _transposed_times(matrix: Matrix, left: Tensor) -> Tensor:
    total = torch.zeros(matrix.size[1], left.shape[1])
    for row, block in blocks(matrix):
        total += block.T @ left[row : row + block.shape[0]]
    return total


def _error(matrix: Matrix, up: Tensor, down: Tensor) -> float:
    missed = total = 0.0
    for row, block in blocks(matrix):
        missed += float((block - up[row : row + block.shape[0]] @ down).double().square().sum())
        total += float(block.double().square().sum())
    return (missed / total) ** 0.5 if total > 0 else 0.0
