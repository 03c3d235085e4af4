"""Products of samples with the factors of their own adapters.

Everywhere S adapters have the same number of samples, adapter by adapter along the first axis. Factors
are stacked: down (S, taps · r, d_in) and up (S, d_out, r), where a linear layer has one tap and a
convolution one for each place of its kernel, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution, (vertical, horizontal) each."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def plain(self) -> bool:
        """True where every output place reads the input place it lies on and no other."""
        return self.size == self.stride == (1, 1) and self.padding == (0, 0)


def add_linear(x: Tensor, out: Tensor, down: Tensor, up: Tensor, scales: Tensor | None) -> Tensor:
    """``out`` (batch, …, d_out) plus each sample's own update of ``x`` (batch, …, d_in).

    Args:
        x: Input of the layer.
        out: Its output without updates.
        down: (S, r, d_in).
        up: (S, d_out, r).
        scales: (S, 1, 1) factors of the updates; None where all are 1.
    """
    seats = down.shape[0]
    hidden = _scaled(torch.bmm(x.reshape(seats, -1, x.shape[-1]), down.mT), scales)
    flat = out.reshape(seats, -1, out.shape[-1])
    return torch.baddbmm(flat, hidden, up.mT).reshape(out.shape)


def add_convolution(
    x: Tensor, out: Tensor, down: Tensor, up: Tensor, scales: Tensor | None, kernel: Kernel
) -> Tensor:
    """As :func:`add_linear`, for x (batch, c_in, h, w) and out (batch, c_out, h', w').

    The product with all taps comes first and the sum over shifted maps second: the maps have r channels
    a tap, where unfolding the input first would copy c_in channels a tap.
    """
    seats, rank = up.shape[0], up.shape[2]
    batch, channels, height, width = x.shape
    pixels = x.flatten(2).mT.reshape(seats, -1, channels)
    maps = torch.bmm(pixels, down.mT)
    if kernel.plain:
        hidden = maps
    else:
        taps = maps.reshape(batch, height, width, *kernel.size, rank)
        hidden = ShiftedSum.apply(taps, kernel).reshape(seats, -1, rank)
    update = torch.bmm(_scaled(hidden, scales), up.mT)
    return out + update.reshape(batch, *out.shape[2:], out.shape[1]).permute(0, 3, 1, 2)


def _scaled(hidden: Tensor, scales: Tensor | None) -> Tensor:
    return hidden if scales is None else hidden * scales.to(hidden.dtype)


class ShiftedSum(torch.autograd.Function):
    """Sums a convolution's products over its taps.

    (batch, h, w, k_h, k_w, r) maps to (batch, h', w', r): place (y, x) of the result is the sum over
    taps (i, j) of the map of that tap at (s y + d i - p, s x + d j - p), zero outside the picture.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Kernel) -> Tensor:
        """See the class."""
        ctx.shape, ctx.kernel = maps.shape, kernel
        vertical, horizontal = kernel.padding
        wide = F.pad(maps.flatten(3), (0, 0, horizontal, horizontal, vertical, vertical))
        return _views(wide, ctx.shape, kernel).sum((3, 4))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Every map's gradient is the result's, shifted back."""
        (grad,) = grads
        batch, height, width, rows, columns, rank = ctx.shape
        vertical, horizontal = ctx.kernel.padding
        wide = grad.new_zeros((batch, height + 2 * vertical, width + 2 * horizontal, rows * columns * rank))
        _views(wide, ctx.shape, ctx.kernel).copy_(grad[:, :, :, None, None])
        return wide[:, vertical : vertical + height, horizontal : horizontal + width].reshape(ctx.shape), None


def _views(wide: Tensor, shape: tuple[int, ...], kernel: Kernel) -> Tensor:
    """The padded maps (batch, h + 2p, w + 2p, k_h · k_w · r) as seen by each place of the result.

    (batch, h', w', k_h, k_w, r), a view in which every element of ``wide`` occurs at most once.
    """
    batch, _, _, rows, columns, rank = shape
    places = [
        (wide.shape[1 + axis] - kernel.dilation[axis] * (kernel.size[axis] - 1) - 1) // kernel.stride[axis]
        + 1
        for axis in (0, 1)
    ]
    sample, down, right, _ = wide.stride()
    tap = (columns * rank, rank)
    strides = (
        sample,
        kernel.stride[0] * down,
        kernel.stride[1] * right,
        kernel.dilation[0] * down + tap[0],
        kernel.dilation[1] * right + tap[1],
        1,
    )
    return wide.as_strided((batch, *places, rows, columns, rank), strides)
