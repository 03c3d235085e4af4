"""Random numbers from a secret: the same on every machine, and one purpose tells nothing of another."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def octets(secret: bytes, purpose: str, count: int) -> bytes:
    """``count`` bytes of SHAKE-256 over the secret and what they are for."""
    label = purpose.encode()
    return hashlib.shake_256(len(label).to_bytes(4, "big") + label + secret).digest(count)


def uniforms(secret: bytes, purpose: str, count: int) -> Tensor:
    """(count,) float64 in (0, 1), 53 random bits each."""
    words = np.frombuffer(octets(secret, purpose, 8 * count), dtype=">u8")
    return torch.from_numpy(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def normals(secret: bytes, purpose: str, count: int) -> Tensor:
    """(count,) float64, standard normal (Box & Muller 1958)."""
    half = -(-count // 2)
    first, second = uniforms(secret, purpose, 2 * half).split(half)
    radius, angle = (-2 * first.log()).sqrt(), 2 * torch.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def frame(secret: bytes, purpose: str, rows: int, columns: int) -> Tensor:
    """(rows, columns) float64 with orthonormal rows, uniform among all such frames.

    QR of a normal matrix with the signs of R's diagonal set back (Mezzadri 2007, math-ph/0609050).

    Raises:
        ValueError: More rows than columns.
    """
    if rows > columns:
        raise ValueError(f"{rows} orthonormal rows do not fit into {columns} dimensions")
    table = normals(secret, purpose, rows * columns).reshape(columns, rows)
    q, r = torch.linalg.qr(table)
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T.contiguous()
