"""How the tensors of one module make its update, by algebra.

Each algebra says which tensors it needs, the weight's size and the rank they imply (from shapes
alone, before any data are read), and the update they make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from loracomp.formats.matrices import Dense, Hadamard, Kronecker, Matrix
from loracomp.lowrank import LowRank
from loracomp.registry import Registry

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Factors = Mapping[str, Tensor]
Size = tuple[int, int]


@dataclass(frozen=True)
class Algebra:
    """One way to write an update.

    Attributes:
        needs: Alternatives of roles, one of which must be there in whole.
        also: Roles that it understands besides.
        size: Output rows and input columns (all axes but the first flattened), or None where the
            tensors do not fit together; from their shapes.
        rank: Number by which alpha is divided, from the shapes; 0 where alpha has no meaning.
        build: The update from the tensors and alpha, None where none is stated.
    """

    needs: tuple[frozenset[str], ...]
    also: frozenset[str]
    size: Callable[[Shapes], Size | None]
    rank: Callable[[Shapes], int]
    build: Callable[[Factors, float | None], LowRank | Matrix]

    def used(self, roles: frozenset[str]) -> frozenset[str]:
        """Which of the roles at hand are part of it; empty where it is not complete."""
        fitting = [need for need in self.needs if need <= roles]
        return frozenset.union(*fitting, self.also & roles) if fitting else frozenset()


ALGEBRAS: Registry[Algebra] = Registry("algebra", "loracomp.algebras")


@cache
def find(roles: frozenset[str]) -> tuple[str, Algebra, frozenset[str]] | None:
    """The algebra that uses the most of the tensors at hand: its name, itself, and the roles it uses.

    None where no algebra is complete.
    """
    fits = [(name, ALGEBRAS[name], ALGEBRAS[name].used(roles)) for name in ALGEBRAS]
    return max((fit for fit in fits if fit[2]), key=lambda fit: len(fit[2]), default=None)


def _matrix(values: Tensor) -> Tensor:
    return values.float().flatten(1)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None or rank == 0 else alpha / rank


def _product(left: Shape | None, right: Shape | None) -> Size | None:
    """Size of the product of two factors whose trailing axes are flattened."""
    if left is None or right is None or min(len(left), len(right)) < 2 or 0 in left + right:
        return None
    return (left[0], prod(right[1:])) if prod(left[1:]) == right[0] else None


def _joined(left: Tensor, right: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factors up and down of LyCORIS' pairs, a Tucker core (left turned then) contracted with the right."""
    if core is None:
        return _matrix(left), _matrix(right)
    return _matrix(left).T, torch.einsum("ijkl,jn->inkl", core.float(), _matrix(right)).flatten(1)


def _core_fits(core: Shape, left: Shape, right: Shape) -> bool:
    """Whether a Tucker core (i, j, k, l) joins factors (i, rows) and (j, columns)."""
    flat = len(left) == 2 and prod(right[2:]) == 1 and len(right) >= 2
    return len(core) == 4 and flat and core[:2] == (left[0], right[0]) and 0 not in core + left + right


# LoRA and LoCon, with or without a Tucker core between the factors.


def _lora_size(shapes: Shapes) -> Size | None:
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    if not {len(up), len(down)} <= {2, 4}:
        return None
    if mid is None:
        return _product(up, down)
    turned = (prod(up[1:]), up[0])
    return (up[0], down[1] * prod(mid[2:])) if _core_fits(mid, turned, down) else None


def _lora(factors: Factors, alpha: float | None) -> LowRank:
    up, down, mid = factors["up"], factors["down"], factors.get("mid")
    if mid is not None:
        down = torch.einsum("ijkl,jn->inkl", mid.float(), _matrix(down)).to(down.dtype)
    if up.ndim != down.ndim:
        up, down = up.flatten(1), down.flatten(1)
    rank = down.shape[0]
    return LowRank(down, up, None if alpha == rank else alpha)


ALGEBRAS.register("lora", summary="LoRA and LoCon: up · down, or up · core · down", paper="2106.09685")(
    Algebra(
        (frozenset({"up", "down"}),),
        frozenset({"mid"}),
        _lora_size,
        lambda shapes: shapes["down"][0],
        _lora,
    )
)


# LoHa: the elementwise product of two low-rank matrices.


def _loha_half(shapes: Shapes, half: str) -> Size | None:
    left, right = shapes[f"hada_w{half}_a"], shapes[f"hada_w{half}_b"]
    core = shapes.get(f"hada_t{half}")
    if core is None:
        return _product(left, right)
    return (left[1], right[1] * prod(core[2:])) if _core_fits(core, left, right) else None


def _loha_size(shapes: Shapes) -> Size | None:
    first, second = _loha_half(shapes, "1"), _loha_half(shapes, "2")
    return first if first == second else None


def _loha(factors: Factors, alpha: float | None) -> Matrix:
    (up_1, down_1), (up_2, down_2) = (
        _joined(factors[f"hada_w{half}_a"], factors[f"hada_w{half}_b"], factors.get(f"hada_t{half}"))
        for half in ("1", "2")
    )
    return Hadamard(up_1, down_1, up_2, down_2, _scale(alpha, factors["hada_w1_b"].shape[0]))


ALGEBRAS.register("loha", summary="LoHa: (up · down) ∘ (up · down)", paper="2108.06098")(
    Algebra(
        (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        frozenset({"hada_t1", "hada_t2"}),
        _loha_size,
        lambda shapes: shapes["hada_w1_b"][0],
        _loha,
    )
)


# LoKr: a Kronecker product, either side whole or a product.


def _lokr_side(shapes: Shapes, side: str) -> Size | None:
    whole = shapes.get(f"lokr_w{side}")
    if whole is not None:
        return (whole[0], prod(whole[1:])) if len(whole) >= 2 and 0 not in whole else None
    left, right, core = (shapes.get(f"lokr_{part}") for part in (f"w{side}_a", f"w{side}_b", f"t{side}"))
    if core is None or left is None or right is None:
        return _product(left, right)
    return (left[1], right[1] * prod(core[2:])) if _core_fits(core, left, right) else None


def _lokr_size(shapes: Shapes) -> Size | None:
    first, second = _lokr_side(shapes, "1"), _lokr_side(shapes, "2")
    plain = len(shapes.get("lokr_w1", (0, 0))) == 2 and "lokr_t1" not in shapes
    return (first[0] * second[0], first[1] * second[1]) if first and second and plain else None


def _lokr_rank(shapes: Shapes) -> int:
    """Rank of the factored side (the second where both are), 0 where both are whole and alpha is void."""
    for side in ("2", "1"):
        if f"lokr_w{side}" not in shapes:
            return shapes[f"lokr_w{side}_b"][0]
    return 0


def _lokr(factors: Factors, alpha: float | None) -> Matrix:
    first = factors.get("lokr_w1")
    first = _matrix(first if first is not None else factors["lokr_w1_a"])
    if "lokr_w1" not in factors:
        first = first @ _matrix(factors["lokr_w1_b"])
    if "lokr_w2" in factors:
        up, down = None, _matrix(factors["lokr_w2"])
    else:
        up, down = _joined(factors["lokr_w2_a"], factors["lokr_w2_b"], factors.get("lokr_t2"))
    rank = _lokr_rank({role: tuple(values.shape) for role, values in factors.items()})
    return Kronecker(first, up, down, _scale(alpha, rank))


_FIRST = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
_SECOND = (frozenset({"lokr_w2"}), frozenset({"lokr_w2_a", "lokr_w2_b"}))
ALGEBRAS.register("lokr", summary="LoKr: a Kronecker product", paper="2309.14859")(
    Algebra(
        tuple(first | second for first in _FIRST for second in _SECOND),
        frozenset({"lokr_t2"}),
        _lokr_size,
        _lokr_rank,
        _lokr,
    )
)


# A full difference of weights.


def _diff_size(shapes: Shapes) -> Size | None:
    whole = shapes["diff"]
    return (whole[0], prod(whole[1:])) if len(whole) >= 2 and 0 not in whole else None


ALGEBRAS.register("diff", summary="full difference of the weights")(
    Algebra(
        (frozenset({"diff"}),),
        frozenset(),
        _diff_size,
        lambda shapes: 0,
        lambda factors, alpha: Dense(_matrix(factors["diff"])),
    )
)
