"""Strength in units of effect: how an adapter's effect on finished pictures grows with its weight.

Doubling a weight does not double what one sees. LiON-LoRA (arXiv:2507.05678) trains a control token for
"linear scalability"; this is the training-free counterpart: the effect is measured once at a few weights, and
a wanted share of the effect is turned into the weight that has it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor

from loracomp.errors import FormatError, UsageError

KNOTS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Weights at which the effect is measured, beside 0 where it is none; it is steepest at first."""


@dataclass(frozen=True)
class EffectCurve:
    """Effect over weight, in units of the effect at weight 1.

    Between its points the curve is the monotone cubic of Fritsch and Carlson (SIAM J. Numer. Anal. 17, 1980);
    beyond the last one a line through the origin and it; for negative weights the mirror image.

    Attributes:
        weights: Ascending, from 0.
        effects: Not descending, from 0; that of weight 1 is 1.
    """

    weights: tuple[float, ...]
    effects: tuple[float, ...]

    def __post_init__(self) -> None:
        weights, effects = list(self.weights), list(self.effects)
        rising = weights == sorted(set(weights)) and effects == sorted(effects)
        if len(weights) != len(effects) or len(weights) < 2 or not rising or weights[0] or effects[0]:
            raise UsageError(
                f"effect curve {weights} → {effects}: both begin at 0 and rise, "
                "with as many effects as weights"
            )

    @classmethod
    def measured(cls, weights: Sequence[float], distances: Sequence[float]) -> EffectCurve:
        """The curve through measurements.

        Args:
            weights: Ascending, above 0, 1 among them.
            distances: Mean distance from the picture without the adapter; pooled where they descend, since
                more weight is taken to be no less effect.

        Raises:
            UsageError: The adapter has no effect at weight 1.
        """
        pooled = _rising(distances)
        unit = pooled[list(weights).index(1.0)]
        if unit <= 0:
            raise UsageError("the adapter changes nothing at weight 1, so its effect cannot be a unit")
        return cls((0.0, *weights), (0.0, *(value / unit for value in pooled)))

    def effect(self, weight: float) -> float:
        """Effect of a weight, in units of that of weight 1."""
        sign, size = (-1.0 if weight < 0 else 1.0), abs(weight)
        last = self.weights[-1]
        if size >= last:
            return sign * self.effects[-1] * size / last
        left = bisect_right(self.weights, size) - 1
        width = self.weights[left + 1] - self.weights[left]
        ends = (self.effects[left], self.effects[left + 1])
        slopes = (self._tangents[left] * width, self._tangents[left + 1] * width)
        return sign * _hermite((size - self.weights[left]) / width, ends, slopes)

    def weight(self, effect: float) -> float:
        """The weight with an effect, by bisection; where many have it, the middle of them."""
        sign, size = (-1.0 if effect < 0 else 1.0), abs(effect)
        if size == 0 or size > self.effects[-1]:
            return sign * size / self.effects[-1] * self.weights[-1]
        return sign * (self._first(size, strict=False) + self._first(size, strict=True)) / 2

    def _first(self, effect: float, *, strict: bool) -> float:
        """The least weight up to the last one whose effect reaches ``effect``, or exceeds it."""
        low, high = 0.0, self.weights[-1]
        for _ in range(60):
            middle = (low + high) / 2
            value = self.effect(middle)
            if value > effect or (value == effect and not strict):
                high = middle
            else:
                low = middle
        return high

    @cached_property
    def _tangents(self) -> list[float]:
        """Slope at each point: at inner ones the weighted harmonic mean of the slopes beside it."""
        widths = [right - left for left, right in pairwise(self.weights)]
        slopes = [
            (right - left) / width
            for (left, right), width in zip(pairwise(self.effects), widths, strict=True)
        ]
        inner = [
            (3 * (w0 + w1)) / ((w0 + 2 * w1) / s0 + (2 * w0 + w1) / s1) if s0 * s1 > 0 else 0.0
            for (w0, w1), (s0, s1) in zip(pairwise(widths), pairwise(slopes), strict=True)
        ]
        return [slopes[0], *inner, slopes[-1]]

    def share(self, strength: float, weight: float = 1.0) -> float:
        """The weight with ``strength`` times the effect of ``weight``."""
        return self.weight(strength * self.effect(weight))

    def to_parts(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"weights": list(self.weights), "effects": [round(value, 6) for value in self.effects]}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> EffectCurve:
        """What :meth:`to_parts` gave; raises :class:`FormatError` for anything else."""
        try:
            return cls(tuple(map(float, parts["weights"])), tuple(map(float, parts["effects"])))
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise FormatError(f"not an effect curve ({error})") from error


def distance(pictures: Tensor, plain: Tensor) -> Tensor:
    """Root mean square difference of each picture from the one without the adapter, shape (pictures,).

    Args:
        pictures: Shape (pictures, 3, height, width) in [0, 1].
        plain: Those without the adapter, from the same noise.
    """
    return (pictures.double() - plain.double()).square().flatten(1).mean(1).sqrt()


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that does not descend: pools of adjacent violators."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (first, n), (second, m) = pools[-2:]
            pools[-2:] = [[(first * n + second * m) / (n + m), n + m]]
    return [mean for mean, count in pools for _ in range(int(count))]


def _hermite(place: float, ends: tuple[float, float], slopes: tuple[float, float]) -> float:
    """Cubic over [0, 1] with given values and slopes at its ends."""
    square, cube = place**2, place**3
    value = (2 * cube - 3 * square + 1) * ends[0] + (3 * square - 2 * cube) * ends[1]
    return value + (cube - 2 * square + place) * slopes[0] + (cube - square) * slopes[1]
