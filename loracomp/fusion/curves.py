"""Strength over a run, as a few points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from loracomp.errors import UsageError

Axis = Literal["run", "step", "sigma"]
Shape = Literal["constant", "linear"]
AXES, SHAPES = ("run", "step", "sigma"), ("constant", "linear")


@dataclass(frozen=True)
class Curve:
    """A factor that depends on the place in the run.

    Attributes:
        points: (position, value) with ascending positions, at least one.
        axis: What a position is: the share of the run that is done, in [0, 1); the number of the step,
            from 0; or the noise level sigma of the scheduler.
        shape: ``constant`` from each point to the next, or ``linear`` between them. Before the first
            point its value holds, after the last one its value.
    """

    points: tuple[tuple[float, float], ...]
    axis: Axis = "run"
    shape: Shape = "constant"

    def __post_init__(self) -> None:
        positions = [position for position, _ in self.points]
        if not positions or positions != sorted(positions):
            raise UsageError(f"curve {self.points}: needs points (position, value) with ascending positions")
        if self.axis not in AXES or self.shape not in SHAPES:
            raise UsageError(
                f"curve of axis {self.axis!r} and shape {self.shape!r}; {AXES} and {SHAPES} exist"
            )

    def values(self, steps: int, sigmas: Tensor | None = None) -> Tensor:
        """Factor in each step, shape (steps,), float32.

        Raises:
            UsageError: A curve over sigma without ``sigmas`` of shape (steps,).
        """
        if self.axis == "sigma":
            if sigmas is None:
                raise UsageError("a curve over sigma needs a scheduler that has noise levels")
            place = sigmas.double().cpu()
        else:
            place = torch.arange(steps, dtype=torch.float64) / (steps if self.axis == "run" else 1)
        positions, values = torch.tensor(self.points, dtype=torch.float64).T.contiguous()
        # 0.3 · 10 steps has to be step 3, whatever the rounding of 0.3.
        right = torch.searchsorted(positions, place + 1e-9, right=True)
        left = (right - 1).clamp_min(0)
        if self.shape == "constant":
            return values[left].float()
        right = right.clamp_max(len(positions) - 1)
        width = (positions[right] - positions[left]).clamp_min(1e-12)
        share = ((place - positions[left]) / width).clamp(0, 1)
        return torch.lerp(values[left], values[right], share).float()

    def to_parts(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"points": [list(point) for point in self.points], "axis": self.axis, "shape": self.shape}

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> Curve:
        """What :meth:`to_parts` gave."""
        points = tuple((float(position), float(value)) for position, value in parts["points"])
        return cls(points, parts.get("axis", "run"), parts.get("shape", "constant"))
