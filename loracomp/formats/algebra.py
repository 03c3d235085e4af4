"""How the factors of one module make its update, by algebra.

Each algebra knows which tensors it needs, the weight shape and rank they imply (from shapes alone,
before any data are read), and the update they make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from torch import Tensor

from loracomp.lowrank import LowRank
from loracomp.registry import Registry

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Factors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Algebra:
    """One way to write an update.

    Attributes:
        needs: Roles of the tensors that it is made of.
        size: Output rows and input columns (all axes but the first flattened), or None where the
            factors do not fit together; from the shapes of the tensors.
        rank: Number by which alpha is divided, from the shapes.
        build: The update from the tensors and alpha.
    """

    needs: frozenset[str]
    size: Callable[[Shapes], tuple[int, int] | None]
    rank: Callable[[Shapes], int]
    build: Callable[[Factors, float | None], LowRank]


ALGEBRAS: Registry[Algebra] = Registry("algebra", "loracomp.algebras")


@cache
def find(roles: frozenset[str]) -> tuple[str, Algebra] | None:
    """The algebra that uses the most of the tensors at hand, and its name; None where none is complete."""
    fits = [(name, ALGEBRAS[name]) for name in ALGEBRAS if ALGEBRAS[name].needs <= roles]
    return max(fits, key=lambda item: len(item[1].needs), default=None)


def _lora_size(shapes: Shapes) -> tuple[int, int] | None:
    up, down = shapes["up"], shapes["down"]
    if len(up) not in (2, 4) or len(down) not in (2, 4) or prod(up[1:]) != down[0] or 0 in up + down:
        return None
    return up[0], prod(down[1:])


def _lora(factors: Factors, alpha: float | None) -> LowRank:
    up, down = factors["up"], factors["down"]
    if up.ndim != down.ndim:
        up, down = up.flatten(1), down.flatten(1)
    rank = down.shape[0]
    return LowRank(down, up, None if alpha is None or alpha == rank else alpha)


ALGEBRAS.register("lora", summary="up · down", paper="2106.09685")(
    Algebra(frozenset({"up", "down"}), _lora_size, lambda shapes: shapes["down"][0], _lora)
)
