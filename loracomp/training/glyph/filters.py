"""Six picture filters that serve as further styles: deterministic, batched, on any device.

Every filter takes straight-alpha pictures ``rgba`` (B, 4, 128, 128) and background colors ``back``
(B, 3), all in [0, 1], and returns (B, 3, 128, 128) in [0, 1]. Filters that bring their own paper
(``OWN_PAPER``) ignore ``back``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Callable[[Tensor, Tensor], Tensor]
OWN_PAPER = frozenset({"pencil", "blueprint", "neon"})
_GRAY = (0.299, 0.587, 0.114)


def over(rgba: Tensor, back: Tensor) -> Tensor:
    """Composite straight-alpha (B, 4, H, W) over colors (B, 3), giving (B, 3, H, W)."""
    alpha = rgba[:, 3:]
    return rgba[:, :3] * alpha + back[:, :, None, None] * (1 - alpha)


def pixel(rgba: Tensor, back: Tensor) -> Tensor:
    """Pixel art: 24 x 24 blocks, six levels a channel, hard outlines."""
    alpha = F.adaptive_avg_pool2d(rgba[:, 3:], 24)
    color = F.adaptive_avg_pool2d(rgba[:, :3] * rgba[:, 3:], 24) / alpha.clamp_min(1e-3)
    color = (color.clamp(0, 1) * 5).round() / 5
    inside = alpha > 0.45
    blocks = torch.where(inside, color, back[:, :, None, None].expand_as(color))
    return F.interpolate(blocks, size=rgba.shape[-2:], mode="nearest")


def pencil(rgba: Tensor, back: Tensor) -> Tensor:
    """Graphite on warm paper: contours from a color-dodge, diagonal hatching in the shadows."""
    del back
    white = torch.ones_like(rgba[:, :3, 0, 0])
    gray = _gray(over(rgba, white))
    lines = (gray / _blur(gray, 3.0).clamp_min(0.05)).clamp(0, 1) ** 1.5
    lines = lines * (1 - 0.75 * _edges(rgba).clamp(0, 1))
    x, y = _grid(rgba)
    hatch = 0.5 + 0.5 * torch.sin((x + y) * (2 * math.pi / 5.0))
    shade = 1 - (1 - gray) * 0.55 * hatch
    paper = rgba.new_tensor([0.98, 0.965, 0.93])[None, :, None, None]
    return (lines * shade * paper).clamp(0, 1)


def blueprint(rgba: Tensor, back: Tensor) -> Tensor:
    """White construction lines on blue paper with a faint 16-pixel grid."""
    del back
    x, y = _grid(rgba)
    rule = ((x % 16 < 1) | (y % 16 < 1)).to(rgba.dtype) * 0.14
    ink = (_edges(rgba) * 1.3 + rule + 0.10 * rgba[:, 3:]).clamp(0, 1)
    paper = rgba.new_tensor([0.11, 0.28, 0.58])[None, :, None, None]
    return paper + (1 - paper) * ink * 0.95


def neon(rgba: Tensor, back: Tensor) -> Tensor:
    """Glowing tubes along the contours, in the saturated local color, on near-black."""
    del back
    hue = rgba[:, :3] - rgba[:, :3].amin(1, keepdim=True)
    hue = _blur(hue * rgba[:, 3:], 1.5)
    hue = hue / hue.amax(1, keepdim=True).clamp_min(0.08)
    cyan = rgba.new_tensor([0.35, 0.95, 1.0])[None, :, None, None]
    colored = hue.amax(1, keepdim=True)
    tube = _edges(rgba).clamp(0, 1)
    light = tube * (0.15 + 0.85 * (hue * colored + cyan * (1 - colored)))
    glow = _blur(light, 4.0) * 1.6 + light + 0.35 * tube**2
    night = rgba.new_tensor([0.035, 0.02, 0.075])[None, :, None, None]
    return (night + glow).clamp(0, 1)


def watercolor(rgba: Tensor, back: Tensor) -> Tensor:
    """Washes with wavy, darker rims and uneven pigment."""
    wavy = _warp(rgba, 2.2)
    alpha = _blur(wavy[:, 3:], 0.8)
    color = _blur(wavy[:, :3] * wavy[:, 3:], 2.0) / _blur(wavy[:, 3:], 2.0).clamp_min(0.02)
    rim = (alpha - _blur(alpha, 3.0)).clamp_min(0) * alpha
    pigment = _noise(rgba, 24, 5) * 0.6 + _noise(rgba, 8, 6) * 0.4
    wash = color * (0.94 - 0.5 * rim) + (1 - color) * (0.22 + 0.18 * pigment)
    return over(torch.cat([wash.clamp(0, 1), alpha * 0.96], 1), back)


def halftone(rgba: Tensor, back: Tensor) -> Tensor:
    """Newsprint: one dot per 6-pixel cell of a 45-degree grid, its area set by the darkness."""
    x, y = _grid(rgba)
    u, v = (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)
    cell = 5.0
    du = (u / cell - (u / cell).round()).abs()
    dv = (v / cell - (v / cell).round()).abs()
    white = torch.ones_like(back)
    flat = _blur(over(rgba, white), 1.2)
    ink = (1 - flat.amin(1, keepdim=True)).clamp(0, 1)
    radius = 0.62 * ink.sqrt()
    dot = ((radius - (du**2 + dv**2).sqrt()) * 6 + 0.5).clamp(0, 1)
    dot = dot * (_blur(rgba[:, 3:], 1.0) > 0.1)
    dark = (flat - (1 - ink)) / ink.clamp_min(0.1)
    color = (0.08 + 0.84 * dark.clamp(0, 1)).clamp(0, 1)
    return color * dot + back[:, :, None, None] * (1 - dot)


FILTERS: dict[str, Filter] = {
    "pixel": pixel,
    "pencil": pencil,
    "blueprint": blueprint,
    "neon": neon,
    "watercolor": watercolor,
    "halftone": halftone,
}
FILTER_PHRASES: dict[str, str] = {
    "pixel": "pixel art style",
    "pencil": "pencil style",
    "blueprint": "blueprint style",
    "neon": "neon style",
    "watercolor": "watercolor style",
    "halftone": "halftone style",
}


def _gray(rgb: Tensor) -> Tensor:
    return (rgb * rgb.new_tensor(_GRAY)[None, :, None, None]).sum(1, keepdim=True)


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x and y, each (1, 1, H, W)."""
    height, width = like.shape[-2:]
    y = torch.arange(height, device=like.device, dtype=like.dtype)[None, None, :, None]
    x = torch.arange(width, device=like.device, dtype=like.dtype)[None, None, None, :]
    return x + 0 * y, y + 0 * x


def _blur(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with edge replication; ``sigma`` in pixels."""
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(picture.shape[1], 1)
    wide = F.pad(picture, (reach, reach, reach, reach), mode="replicate")
    groups = picture.shape[1]
    rows = F.conv2d(wide, kernel[:, None, None, :], groups=groups)
    return F.conv2d(rows, kernel[:, None, :, None], groups=groups)


def _edges(rgba: Tensor) -> Tensor:
    """Contour strength (B, 1, H, W), about 0 to 1.5: gradients of premultiplied color and alpha."""
    picture = _blur(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1), 0.7)
    wide = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    across = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]
    down = wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    return (across**2 + down**2).sum(1, keepdim=True).sqrt() * 1.4


def _noise(like: Tensor, cells: int, seed: int) -> Tensor:
    """Smooth noise (1, 1, H, W) in [0, 1] with about ``cells`` bumps a side; always the same."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, cells, cells, generator=source).to(like)
    return F.interpolate(coarse, size=like.shape[-2:], mode="bicubic").clamp(0, 1)


def _warp(picture: Tensor, reach: float) -> Tensor:
    """Shift pixels by smooth noise of at most ``reach`` pixels."""
    height, width = picture.shape[-2:]
    x, y = _grid(picture)
    x = x + (_noise(picture, 14, 1) - 0.5) * 2 * reach
    y = y + (_noise(picture, 14, 2) - 0.5) * 2 * reach
    places = torch.cat([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], 1).permute(0, 2, 3, 1)
    places = places.expand(len(picture), -1, -1, -1)
    return F.grid_sample(picture, places, padding_mode="border", align_corners=False)
