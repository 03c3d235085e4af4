"""Strengths over a run as text: ``0.8``, ``0@0..0.3,1@0.3..1``, ``0@0,1@0.5``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from loracomp.fusion.curves import Axis, Curve
from loracomp.fusion.quote import Quote

Piece = tuple[float, float, float]
"""(strength, from, to); a point has from = to."""

_AXES: dict[str, Axis] = {"step": "step", "sigma": "sigma"}


@dataclass(frozen=True)
class Strength:
    """What a user says about one adapter's strength.

    Attributes:
        pieces: Ranges that do not overlap, ascending, or points; a single range from 0 on to infinity is
            one strength throughout.
        axis: As in :class:`Curve`.
        points: Whether the pieces are points, joined by straight lines.
    """

    pieces: tuple[Piece, ...]
    axis: Axis = "run"
    points: bool = False

    @classmethod
    def constant(cls, value: float) -> Strength:
        """One strength throughout."""
        return cls(((value, 0.0, math.inf),))

    @classmethod
    def of(cls, weight: float, curve: Curve | None) -> Strength:
        """The strength whose :meth:`split` is weight and curve."""
        if curve is None:
            return cls.constant(weight)
        values = [_product(weight, factor) for _, factor in curve.points]
        places = [position for position, _ in curve.points]
        if curve.shape == "linear":
            return cls(tuple((v, p, p) for v, p in zip(values, places, strict=True)), curve.axis, True)
        # Before its first point a curve has the value of that point.
        starts, ends = [0.0, *places[1:]], [*places[1:], math.inf]
        ranges = zip(values, starts, ends, strict=True)
        said = tuple(piece for piece in ranges if piece[0] and piece[1] < piece[2])
        return cls(said, curve.axis) if said else cls.constant(0.0)

    @property
    def shaped(self) -> bool:
        """Whether the strength changes over the run."""
        return len({value for value, *_ in self._filled()}) > 1

    def split(self) -> tuple[float, Curve | None]:
        """The largest strength by size, and the curve of factors on it; None where it does not change."""
        pieces = self._filled()
        weight = max((value for value, *_ in pieces), key=abs)
        if not self.shaped:
            return weight, None
        points = tuple((start, value / weight) for value, start, _ in pieces)
        return weight, Curve(points, self.axis, "linear" if self.points else "constant")

    def _filled(self) -> list[Piece]:
        """The ranges with silent ones between them, from 0 on to the end of the run."""
        if self.points:
            return list(self.pieces)
        filled, at = [], 0.0
        for value, start, end in self.pieces:
            if start > at:
                filled.append((0.0, at, start))
            filled.append((value, start, end))
            at = end
        if at < (1.0 if self.axis == "run" else math.inf):
            filled.append((0.0, at, math.inf))
        return filled

    def __str__(self) -> str:
        if self.points:
            return ",".join(f"{spelled(v)}@{self._axis}{spelled(p)}" for v, p, _ in self.pieces)
        if len(self.pieces) == 1 and self.pieces[0][1:] == (0.0, math.inf):
            return spelled(self.pieces[0][0])
        return ",".join(f"{spelled(v)}@{self._axis}{_edge(a)}..{_edge(b)}" for v, a, b in self.pieces)

    @property
    def _axis(self) -> str:
        return "" if self.axis == "run" else f"{self.axis}="


def read_strength(quote: Quote) -> Strength:
    """The strength that stands there; raises :class:`UsageError` with the column."""
    found: list[tuple[Piece, Quote]] = []
    axes: set[Axis] = set()
    for part in quote.split(",;"):
        said, where = part.cut("@")
        value = said.number() if said.value or where is None else 1.0
        if where is None:
            if len(quote.split(",;")) > 1:
                part.fail(f"{part.value!r} has no range; write {part.value}@0..0.5")
            return Strength.constant(value)
        axis, where = _axis_of(where)
        axes.add(axis)
        found.append(((value, *_range(where, axis)), where))
    if len(axes) > 1:
        quote.fail(f"{' and '.join(sorted(axes))} in one curve; choose one")
    return _checked(found, axes.pop())


def _axis_of(where: Quote) -> tuple[Axis, Quote]:
    name, rest = where.cut("=")
    if rest is None:
        return "run", where
    axis = _AXES.get(name.value)
    if axis is None:
        name.fail(f"no axis {name.value!r}; write @step=5..10, @sigma=0.5..3, or shares of the run: @0..0.5")
    return axis, rest


def _range(where: Quote, axis: Axis) -> tuple[float, float]:
    first, last = where.cut("..")
    start = first.number("place") if first.value else 0.0
    if last is None:
        end = start
    else:
        end = last.number("place") if last.value else math.inf
        if axis == "sigma" and start > end:
            start, end = end, start
        if not start < end:
            where.fail(f"range {where.value} is empty; write from a smaller number to a larger one")
    if start < 0 or (axis == "run" and math.isfinite(end) and end > 1):
        where.fail(
            f"{where.value} is outside 0 … 1, the shares of a run; for steps write @step={where.value}"
        )
    return start, math.inf if axis == "run" and last is not None and end == 1 else end


def _checked(found: list[tuple[Piece, Quote]], axis: Axis) -> Strength:
    points = [piece[1] == piece[2] for piece, _ in found]
    if len(set(points)) > 1:
        found[points.index(not points[0])][1].fail("ranges and points in one curve; choose one")
    ordered = sorted(found, key=lambda item: item[0][1])
    for (before, _), (after, where) in pairwise(ordered):
        if not points[0] and after[1] < before[2]:
            where.fail(f"range {where.value} overlaps another one")
    # Silence between ranges goes without saying.
    said = tuple(piece for piece, _ in ordered if points[0] or piece[0])
    return Strength(said, axis, points[0]) if said else Strength.constant(0.0)


def spelled(value: float) -> str:
    """The shortest text that reads as this number again."""
    text = f"{value:.15g}"
    text = text if float(text) == value else repr(value)
    return text.replace("e+", "e")


def _edge(value: float) -> str:
    return "" if math.isinf(value) else spelled(value)


def _product(weight: float, factor: float) -> float:
    """The strength that splits into just this weight and factor, among the neighbors the shortest one."""
    exact = weight * factor
    near = [float(f"{exact:.{digits}g}") for digits in range(1, 18)]
    near += [math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf)]
    return next((value for value in near if weight and value / weight == factor), exact)
