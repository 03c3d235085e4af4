"""Exact tails of the tests: points on spheres, random signs, fair bits, and intervals of shares.

No function returns 0: what is smaller than :data:`LEAST` is reported as that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LEAST = 1e-300
HALVES = 40
"""Most signs whose tail is computed exactly by meeting in the middle (2²⁰ sums a half)."""
LATTICE = 1 << 14


def beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction.

    Reference: Press et al., Numerical Recipes, §6.4.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_share(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away(1 + term * d, tiny)
            c = _away(1 + term / c, tiny)
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return value


def _away(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value


def sphere_tail(cosine: float, dimensions: int) -> float:
    """P(⟨u, v⟩ ≥ cosine) for a fixed unit vector u and v uniform on the unit sphere.

    ½ I_{1-ρ²}((d - 1) / 2, ½) for ρ ≥ 0. Exact whatever u is, so it holds for any number of images that
    depend on each other and any bias of the extractor, as long as v is independent of u.

    Args:
        cosine: ρ in [-1, 1].
        dimensions: d, at least 2.
    """
    rho = max(-1.0, min(1.0, cosine))
    half = 0.5 * beta_share((1 - rho) * (1 + rho), (dimensions - 1) / 2, 0.5)
    return max(LEAST, half if rho >= 0 else 1 - half)


def critical_cosine(alpha: float, dimensions: int) -> float:
    """The smallest cosine whose tail is at most ``alpha`` in (0, 0.5]."""
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if sphere_tail(middle, dimensions) > alpha else (low, middle)
    return high


def sign_tail(weights: Tensor, score: float) -> float:
    """P(Σ εᵢ wᵢ ≥ score) for independent random signs εᵢ: the key-randomisation test of fixed carriers.

    Exact by meeting in the middle up to :data:`HALVES` weights; above, an upper bound from a lattice of
    2¹⁴ bins whose rounding is taken off the score.

    Args:
        weights: Shape (n,).
        score: What the registered key reaches.
    """
    sizes = weights.double().abs()
    slack = 1e-12 * float(sizes.sum())
    if len(sizes) <= HALVES:
        return max(LEAST, _met(sizes, score - slack))
    return max(LEAST, _lattice(sizes.numpy(), score - slack))


def _met(sizes: Tensor, score: float) -> float:
    half = len(sizes) // 2
    first, second = _sums(sizes[:half]), _sums(sizes[half:]).sort().values
    below = torch.searchsorted(second, score - first)
    return float((len(second) - below).double().sum() / 2.0 ** len(sizes))


def _sums(sizes: Tensor) -> Tensor:
    """All 2ⁿ signed sums."""
    out = torch.zeros(1, dtype=torch.float64)
    for size in sizes:
        out = torch.cat([out + size, out - size])
    return out


def _lattice(sizes: np.ndarray, score: float) -> float:
    total = float(sizes.sum())
    if total == 0:
        return float(score <= 0)
    width = 2 * total / (LATTICE - 2 * len(sizes))
    steps = np.rint(sizes / width).astype(int)
    lost = float(np.abs(sizes - steps * width).sum())
    reach = int(steps.sum())
    mass = np.zeros(2 * reach + 1)
    mass[reach] = 1.0
    for step in steps:
        mass = 0.5 * (_moved(mass, step) + _moved(mass, -step))
    first = math.ceil((score - lost) / width - 1e-9) + reach
    return float(min(1.0, mass[max(0, first) :].sum())) if first < len(mass) else 0.0


def _moved(mass: np.ndarray, by: int) -> np.ndarray:
    out = np.zeros_like(mass)
    if by >= 0:
        out[by:] = mass[: len(mass) - by]
    else:
        out[:by] = mass[-by:]
    return out


def bit_tail(matches: int, bits: int) -> float:
    """P(Bin(bits, ½) ≥ matches), summed in integers."""
    ways = sum(math.comb(bits, k) for k in range(max(0, matches), bits + 1))
    return max(LEAST, ways / 2**bits)


def bit_threshold(bits: int, alpha: float) -> int | None:
    """The smallest T with P(Bin(bits, ½) ≥ T) ≤ alpha; accept iff matches ≥ T. None where no T does."""
    return next((t for t in range(bits + 1) if bit_tail(t, bits) <= alpha), None)


def share_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _quantile(tail, hits, trials - hits + 1)
    high = 1.0 if hits == trials else _quantile(1 - tail, hits + 1, trials - hits)
    return low, high


def _quantile(share: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if beta_share(middle, a, b) < share else (low, middle)
    return 0.5 * (low + high)


def balanced_share(bits: int) -> float:
    """Share of all messages whose weight lies in :func:`balanced_weights`."""
    low, high = balanced_weights(bits)
    return sum(math.comb(bits, k) for k in range(low, high + 1)) / 2**bits


def balanced_weights(bits: int) -> tuple[int, int]:
    """Fewest and most ones of a message: 0.40 L to 0.60 L."""
    return math.ceil(0.4 * bits - 1e-9), math.floor(0.6 * bits + 1e-9)
