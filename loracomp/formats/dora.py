"""DoRA: updates whose weights are renormalised to a learned magnitude (arXiv:2402.09353, §4.1).

W' = m ∘ (W + ΔV) / ‖W + ΔV‖, the norm taken over each output row, or over each input column in older
files. The difference W' − W depends on the base's weights and has full rank in general.
"""

from __future__ import annotations

from torch import Tensor

from loracomp.formats.matrices import Dense


def magnitude_axis(shape: tuple[int, ...], weight: tuple[int, ...]) -> int | None:
    """The axis of the weight that a magnitude vector of this shape belongs to: 0 rows, 1 columns.

    Vectors of one axis and square layers count as rows, which every current writer uses; None where
    the vector fits neither.
    """
    sides = [side for side in shape if side != 1]
    if len(sides) > 1:
        return None
    length = sides[0] if sides else 1
    column_like = len(shape) > 1 and shape[0] == 1 and shape[1] == length
    if column_like and length == weight[1] and (len(shape) == 2 or length != weight[0]):
        return 1
    return 0 if length == weight[0] else None


def decomposed(weight: Tensor, update: Tensor, magnitude: Tensor) -> Dense:
    """The difference that a DoRA layer makes, as a matrix.

    Args:
        weight: The base's weight (d_out, d_in) or (c_out, c_in, k_h, k_w).
        update: The direction's update ΔV in the same shape.
        magnitude: The magnitudes, one per output row or input column.

    Raises:
        ValueError: The magnitudes fit neither rows nor columns.
    """
    axis = magnitude_axis(tuple(magnitude.shape), tuple(weight.shape))
    if axis is None:
        raise ValueError(f"magnitudes of shape {tuple(magnitude.shape)} for weights {tuple(weight.shape)}")
    base = weight.double()
    moved = base + update.double()
    others = [a for a in range(moved.ndim) if a != axis]
    lengths = moved.square().sum(others, keepdim=True).sqrt()
    turned = magnitude.double().reshape(lengths.shape) * moved / lengths.clamp_min(1e-30)
    return Dense((turned - base).float().flatten(1))
