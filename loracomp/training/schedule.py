"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from typing import Literal


def rate(step: int, *, peak: float, steps: int, warmup: int, shape: Literal["cosine", "constant"]) -> float:
    """Learning rate of optimiser step ``step`` in [0, steps).

    Rises in equal parts over ``warmup`` steps (at most a fifth of the run), then stays or falls along
    half a cosine towards zero (SGDR, arXiv:1608.03983, eq. 5, without restarts).
    """
    rise = min(warmup, steps // 5)
    if step < rise:
        return peak * (step + 1) / rise
    if shape == "constant":
        return peak
    done = (step - rise) / max(1, steps - rise)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
