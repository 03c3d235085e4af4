"""Between pictures and tensors, and the two halves of a picture that shows two things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SHARE = 0.9
"""Side of a thing over the side of the square that is cut out around it."""
FAINT = 0.12
"""Difference from the background, in [0, 1], up to which a pixel counts as background."""


def as_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures of one size as (B, 3, H, W) RGB in [0, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def as_images(pictures: Tensor) -> list[Image]:
    """(B, 3, H, W) RGB in [0, 1] as pictures of 8 bits."""
    from PIL import Image as Pillow

    values = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Pillow.fromarray(value) for value in values]


def halves(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What stands left and right of the middle, each cut out and enlarged to the picture's size.

    Args:
        pictures: Shape (B, 3, S, S) in [0, 1].

    Returns:
        Two tensors of the same shape: the content of each half, in the middle, on the background.
    """
    middle = pictures.shape[-1] // 2
    backs = _background(pictures)
    left = [_cut(p[:, :, :middle], b) for p, b in zip(pictures, backs, strict=True)]
    right = [_cut(p[:, :, middle:], b) for p, b in zip(pictures, backs, strict=True)]
    return torch.stack(left), torch.stack(right)


def _background(pictures: Tensor) -> Tensor:
    """Median color (B, 3) of each picture's outermost pixels."""
    rim = [pictures[..., 0, :], pictures[..., -1, :], pictures[..., 0], pictures[..., -1]]
    return torch.cat(rim, -1).median(-1).values


def _cut(half: Tensor, back: Tensor) -> Tensor:
    """The content of (3, S, S / 2), found by its difference from ``back`` (3,), as (3, S, S)."""
    size = half.shape[1]
    seen = (half - back[:, None, None]).abs().amax(0) > FAINT
    if not seen.any():
        return back[:, None, None].expand(3, size, size).clone()
    rows, columns = (torch.nonzero(seen.any(axis))[:, 0] for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    inside = half[:, top:bottom, left:right]
    side = max(round(max(inside.shape[1:]) / SHARE), size // 4)
    square = back[:, None, None].expand(3, side, side).clone()
    y, x = (side - inside.shape[1]) // 2, (side - inside.shape[2]) // 2
    square[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
    return F.interpolate(square[None], size=(size, size), mode="bilinear", antialias=True)[0]
