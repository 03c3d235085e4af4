"""When features are reused between steps, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import UsageError


@dataclass(frozen=True)
class CachePlan:
    """Which blocks are skipped, and in which steps they are computed anew.

    Attributes:
        interval: Refresh in every so many steps; 1 caches nothing.
        steps: Steps that refresh instead of those of ``interval``; the first one always does.
        outer: How much is always computed: so many outermost levels of a UNet, on the way down and up
            again (DeepCache, arXiv:2312.00858, §3.3), or so many blocks at either end of a transformer.
        tolerance: How far a gate inside the skipped blocks may have moved since the last refresh, as the
            largest difference of strengths. 0 refreshes on every change, infinity on none.
    """

    interval: int = 3
    steps: tuple[int, ...] = ()
    outer: int = 1
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.interval < 1 or self.outer < 1 or not self.tolerance >= 0:
            raise UsageError(
                f"cache plan with interval {self.interval}, outer {self.outer}, tolerance {self.tolerance}: "
                "interval and outer begin at 1, tolerance at 0"
            )

    def refresh(self, steps: int) -> Tensor:
        """Which steps refresh, shape (steps,), bool."""
        chosen = torch.zeros(steps, dtype=torch.bool)
        chosen[[step for step in (self.steps or range(0, steps, self.interval)) if step < steps]] = True
        chosen[:1] = True
        return chosen

    def to_parts(self) -> dict[str, Any]:
        """Plain data for JSON; infinity as a string, which JSON has no number for."""
        tolerance = "inf" if self.tolerance == float("inf") else self.tolerance
        return {
            "interval": self.interval,
            "steps": list(self.steps),
            "outer": self.outer,
            "tolerance": tolerance,
        }

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> CachePlan:
        """What :meth:`to_parts` gave."""
        steps = tuple(int(step) for step in parts["steps"])
        return cls(int(parts["interval"]), steps, int(parts["outer"]), float(parts["tolerance"]))
