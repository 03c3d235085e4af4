"""One module of a file as an update: its tensors read, its strength found, DoRA resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from loracomp.formats import dora
from loracomp.formats.algebra import ALGEBRAS
from loracomp.formats.gate import printable
from loracomp.formats.health import finite
from loracomp.formats.matching import Found
from loracomp.formats.matrices import Matrix, reduce
from loracomp.formats.scales import Stated
from loracomp.formats.source import Source
from loracomp.lowrank import LowRank

Weights = Callable[[str], Tensor]
"""The base's weight of a layer, by its module path."""

NEEDS_WEIGHTS = "a DoRA magnitude; the base's weights are needed to convert it"


class UnusableError(ValueError):
    """A module's values cannot be used; the message names the tensor."""


def read(
    source: Source, item: Found, says: Stated, weights: Weights | None = None, *, check: bool = True
) -> LowRank | Matrix:
    """The update of one module, low-rank ones in the shape of the base's weight.

    DoRA magnitudes are taken into account where the base's weights are given, else left out. Who
    measures the update anyway leaves out the check for finite values, and checks where the measure is
    not finite; the update is then in float32 and lives until the next module is read.

    Raises:
        UnusableError: NaN or infinite values, or a rank beyond the limit.
    """
    if item.rank > source.limits.rank:
        limit = source.limits.rank
        raise UnusableError(
            f"the module {printable(item.name)!r} has rank {item.rank}, above the limit {limit}"
        )
    roles = sorted(item.keys.keys() - {"alpha"}, key=lambda role: source.tensors[item.keys[role]].begin)
    keys = [item.keys[role] for role in roles]
    for key in keys:
        if not (kind := source.tensors[key].dtype).is_floating_point:
            raise UnusableError(f"the tensor {printable(key)!r} holds {kind}, no fractions")
    values = source.side_by_side(keys) if check else source.together(keys, item.keys.get("alpha", ""))
    factors = dict(zip(roles, values, strict=True))
    if check:
        check_finite(item, factors)
    magnitude = factors.pop("magnitude", None)
    update = ALGEBRAS[item.algebra].build(factors, strength(source, item, says))
    if isinstance(update, LowRank):
        update = shaped(update, item.module.shape)
    if magnitude is None or weights is None:
        return update
    return _decomposed(item, update, magnitude, weights)


def check_finite(item: Found, factors: Mapping[str, Tensor]) -> None:
    """Raises :class:`UnusableError` naming the first tensor with NaN or infinite values."""
    for role, values in factors.items():
        if not finite(values):
            raise UnusableError(f"the tensor {printable(item.keys[role])!r} holds NaN or infinite values")


def strength(source: Source, item: Found, says: Stated) -> float | None:
    """Alpha of a module, from its own tensor or else from what a PEFT configuration states."""
    if "alpha" not in item.keys:
        return says.alpha(item.module.pieces[0].path, item.rank)
    alpha = source.scalar(item.keys["alpha"])
    if alpha - alpha != 0:
        raise UnusableError(f"the tensor {printable(item.keys['alpha'])!r} holds NaN or infinite values")
    return alpha


def _decomposed(item: Found, update: LowRank | Matrix, magnitude: Tensor, weights: Weights) -> Matrix:
    shape = item.module.shape
    weight = torch.empty(shape)
    for piece in item.module.pieces:
        values, row = weights(piece.path).to("cpu", torch.float32), 0
        for start, stop in piece.rows:
            weight[start:stop] = values[row : row + stop - start]
            row += stop - start
    moved = update.delta() if isinstance(update, LowRank) else update.rows(0, shape[0]).reshape(shape)
    try:
        return dora.decomposed(weight, moved, magnitude)
    except ValueError as error:
        raise UnusableError(f"the module {printable(item.name)!r} has {error}") from None


def shaped(layer: LowRank, shape: tuple[int, ...]) -> LowRank:
    """The same update with the axes of the weight: linear factors of a 1×1 convolution and the reverse."""
    if layer.weight_shape == shape:
        return layer
    tail = (1,) * (len(shape) - 2)
    down = layer.down.reshape(layer.rank, *shape[1:])
    return LowRank(down, layer.up.reshape(*layer.up.shape[:2], *tail), layer.alpha)


def low_rank(item: Found, update: LowRank | Matrix, limit: int) -> tuple[LowRank, float]:
    """The update in factors, and the relative Frobenius error of that (0 where exact).

    Raises:
        UnusableError: Values so large that their products are infinite.
    """
    if isinstance(update, LowRank):
        return update, 0.0
    reduced = reduce(update, item.module.shape, limit)
    if not finite(reduced.layer.up) or not finite(reduced.layer.down):
        raise UnusableError(f"the module {printable(item.name)!r} has values too large to be multiplied")
    return reduced.layer, reduced.error
