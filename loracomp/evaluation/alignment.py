"""Pixel-level similarity that forgives a little displacement: the best shift and size, then PSNR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (0.8, 0.87, 0.93, 1.0, 1.07, 1.15, 1.25)
REACH = 12
CEILING = 60.0


def aligned_psnr(
    pictures: Tensor, truths: Tensor, scales: Sequence[float] = SCALES, reach: int = REACH
) -> Tensor:
    """PSNR of pictures against their truths, each truth at its best size and place.

    All shifts of up to ``reach`` pixels are tried at once as a circular correlation, by the FFT.

    Args:
        pictures: Shape (B, 3, H, W) in [0, 1].
        truths: Shape (B, 3, H, W) in [0, 1].
        scales: Sizes that are tried, relative to the truth's.
        reach: Most pixels that a truth is moved along each axis.

    Returns:
        Decibels, shape (B,), at most 60.
    """
    errors = torch.stack([_least_error(pictures, _scaled(truths, scale), reach) for scale in scales])
    floor = 10 ** (-CEILING / 10)
    return -10 * errors.amin(0).clamp_min(floor).log10()


def _scaled(pictures: Tensor, scale: float) -> Tensor:
    """Pictures enlarged around their middle; where they shrink, their rim goes on."""
    if scale == 1:
        return pictures
    matrix = pictures.new_tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]]).expand(len(pictures), 2, 3)
    places = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, places, mode="bilinear", padding_mode="border", align_corners=False)


def _least_error(pictures: Tensor, truths: Tensor, reach: int) -> Tensor:
    """Least mean squared error (B,) over all shifts of up to ``reach`` pixels."""
    one, other = (torch.fft.rfft2(p.double()) for p in (pictures, truths))
    agreement = torch.fft.irfft2((one * other.conj()).sum(1), s=pictures.shape[-2:])
    near = torch.cat([agreement[:, : reach + 1], agreement[:, -reach:]], 1) if reach else agreement[:, :1]
    near = torch.cat([near[:, :, : reach + 1], near[:, :, -reach:]], 2) if reach else near[:, :, :1]
    energy = pictures.double().square().sum((1, 2, 3)) + truths.double().square().sum((1, 2, 3))
    return (energy - 2 * near.flatten(1).amax(1)).clamp_min(0) / pictures[0].numel()
