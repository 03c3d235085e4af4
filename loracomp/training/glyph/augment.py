"""Training pictures from rendered icons, in batches on the device: pairs, tints, backgrounds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.training.glyph.palette import COLORS


def palette(device: torch.device | str = "cpu") -> Tensor:
    """The named background colors as (12, 3) in [0, 1], in the order of ``COLOR_NAMES``."""
    return torch.tensor(list(COLORS.values()), dtype=torch.float32, device=device) / 255


def as_float(pictures: Tensor) -> Tensor:
    """(B, H, W, 4) bytes to (B, 4, H, W) in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).to(torch.float32) / 255


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two straight-alpha pictures (B, 4, H, W) at half size, left and right of the middle."""
    halves = [_half(left), _half(right)]
    both = torch.cat(halves, 3)
    quarter = both.shape[2] // 2
    return F.pad(both, (0, 0, quarter, quarter))


def tint(rgba: Tensor, color: Tensor) -> Tensor:
    """Repaint straight-alpha pictures (B, 4, H, W) in shades of ``color`` (B, 3)."""
    gray = (rgba[:, :3] * rgba.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, True)
    hue = color[:, :, None, None]
    dark = hue * (0.25 + 1.25 * gray)
    light = hue + (1 - hue) * (gray * 2.5 - 1.5).clamp(0, 1)
    painted = torch.where(gray < 0.6, dark, light).clamp(0, 1)
    return torch.cat([0.85 * painted + 0.15 * rgba[:, :3], rgba[:, 3:]], 1)


def shuffle_channels(rgb: Tensor, share: float, source: torch.Generator | None = None) -> Tensor:
    """Permute the color channels of a random ``share`` of the pictures (B, 3, H, W)."""
    order = torch.randperm(3, generator=source, device=rgb.device)
    chosen = torch.rand(len(rgb), 1, 1, 1, generator=source, device=rgb.device) < share
    return torch.where(chosen, rgb[:, order], rgb)


def inked(rgba: Tensor, source: torch.Generator | None = None) -> Tensor:
    """Redraw straight-alpha pictures (B, 4, H, W) in black: their dark or their light parts, and an outline.

    The part is cut at the picture's own mean brightness, shifted by up to 0.15 at random.
    """
    gray = (rgba[:, :3] * rgba.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, True)
    alpha = rgba[:, 3:]
    mean = (gray * alpha).sum((2, 3), True) / alpha.sum((2, 3), True).clamp_min(1)
    draw = torch.rand(2, len(rgba), 1, 1, 1, generator=source, device=rgba.device)
    dark = ((mean + 0.3 * (draw[0] - 0.5) - gray) * 25).sigmoid()
    part = torch.where(draw[1] < 0.5, dark, 1 - dark) * alpha
    inner = -F.max_pool2d(-alpha, 5, stride=1, padding=2)
    ink = torch.maximum(part, (alpha - inner).clamp(0, 1))
    return torch.cat([torch.zeros_like(rgba[:, :3]), ink], 1)


def soften(rgb: Tensor, share: float, source: torch.Generator | None = None) -> Tensor:
    """Blur a random ``share`` of the pictures by a 3 x 3 binomial kernel, as decoders do."""
    kernel = rgb.new_tensor([0.25, 0.5, 0.25])
    weight = (kernel[:, None] * kernel[None, :]).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(rgb, (1, 1, 1, 1), mode="replicate"), weight, groups=3)
    chosen = torch.rand(len(rgb), 1, 1, 1, generator=source, device=rgb.device) < share
    return torch.where(chosen, blurred, rgb)


def _half(rgba: Tensor) -> Tensor:
    """Halve a straight-alpha picture; the colors are averaged by their opacity."""
    alpha = F.avg_pool2d(rgba[:, 3:], 2)
    color = F.avg_pool2d(rgba[:, :3] * rgba[:, 3:], 2) / alpha.clamp_min(1e-4)
    return torch.cat([color.clamp(0, 1), alpha], 1)
