"""Filters that move pixels, on pictures (B, 4, 128, 128) and backgrounds (B, 3) in [0, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.training.glyph.filters import over


def pixels(like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates x and y, each (1, 1, H, W)."""
    height, width = like.shape[-2:]
    y = torch.arange(height, dtype=like.dtype)[None, None, :, None].expand(1, 1, height, width)
    return torch.arange(width, dtype=like.dtype)[None, None, None, :].expand(1, 1, height, width), y


def blur(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with edge replication; ``sigma`` in pixels."""
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(picture.shape[1], 1)
    wide = F.pad(picture, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(wide, kernel[:, None, None, :], groups=picture.shape[1])
    return F.conv2d(rows, kernel[:, None, :, None], groups=picture.shape[1])


def sampled(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The picture as seen from places (1, 1, H, W) in pixels; beyond its border, its border."""
    height, width = picture.shape[-2:]
    places = torch.cat([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], 1).permute(0, 2, 3, 1)
    places = places.expand(len(picture), -1, -1, -1)
    return F.grid_sample(picture, places, padding_mode="border", align_corners=False)


def swirl(rgba: Tensor, back: Tensor, degrees: int) -> Tensor:
    """Turned around the middle, most in the middle itself."""
    angle, radius = _polar(rgba)
    turn = math.radians(degrees) * (1 - radius / 64).clamp(0, 1)
    return sampled(over(rgba, back), *_cartesian(angle + turn, radius))


def waves(rgba: Tensor, back: Tensor, length: int) -> Tensor:
    """Columns and rows shifted along sines of the given length in pixels."""
    x, y = pixels(rgba)
    moved = x + 5 * torch.sin(y * 2 * math.pi / length), y + 5 * torch.sin(x * 2 * math.pi / length)
    return sampled(over(rgba, back), *moved)


def kaleidoscope(rgba: Tensor, back: Tensor, parts: int) -> Tensor:
    """One sector mirrored around the middle."""
    angle, radius = _polar(rgba)
    sector = 2 * math.pi / parts
    folded = (angle % sector - sector / 2).abs()
    return sampled(over(rgba, back), *_cartesian(folded - 2.2, radius * 0.95))


def bulged(rgba: Tensor, back: Tensor, percent: int) -> Tensor:
    """Magnified in the middle, squeezed at the rim."""
    angle, radius = _polar(rgba)
    share = (radius / 64).clamp(0, 1)
    return sampled(over(rgba, back), *_cartesian(angle, radius * share ** (percent / 100)))


def glitch(rgba: Tensor, back: Tensor, seed: int) -> Tensor:
    """Bands of rows thrown sideways, red and blue thrown further."""
    source = torch.Generator().manual_seed(seed)
    bands = torch.randint(-14, 15, (16,), generator=source) * (torch.rand(16, generator=source) < 0.55)
    shift = bands.repeat_interleave(8).to(rgba.dtype)[None, None, :, None]
    x, y = pixels(rgba)
    picture = over(rgba, back)
    channels = [
        sampled(picture[:, channel : channel + 1], x + shift + offset, y)
        for channel, offset in enumerate((-4, 0, 4))
    ]
    return torch.cat(channels, 1)


def frosted(rgba: Tensor, back: Tensor, reach: int) -> Tensor:
    """Every pixel taken from a random place nearby, always the same one."""
    source = torch.Generator().manual_seed(reach)
    x, y = pixels(rgba)
    jitter = (torch.rand(2, 1, 1, 128, 128, generator=source) - 0.5) * 2 * reach
    return sampled(over(rgba, back), x + jitter[0], y + jitter[1])


def rushed(rgba: Tensor, back: Tensor, degrees: int) -> Tensor:
    """Smeared over 24 pixels in a direction."""
    x, y = pixels(rgba)
    angle, picture = math.radians(degrees), over(rgba, back)
    steps = [-12 + 24 * step / 12 for step in range(13)]
    views = [sampled(picture, x + s * math.cos(angle), y + s * math.sin(angle)) for s in steps]
    return torch.stack(views).mean(0)


def zoomed(rgba: Tensor, back: Tensor, percent: int) -> Tensor:
    """Smeared along rays from the middle, by a share of the distance."""
    angle, radius = _polar(rgba)
    picture = over(rgba, back)
    scales = [1 - percent / 100 * step / 12 for step in range(13)]
    return torch.stack([sampled(picture, *_cartesian(angle, radius * scale)) for scale in scales]).mean(0)


def tiled(rgba: Tensor, back: Tensor, count: int) -> Tensor:
    """Small copies in rows and columns."""
    picture = over(rgba, back)
    small = F.interpolate(picture, size=(128 // count + 1,) * 2, mode="bilinear", antialias=True)
    return small.repeat(1, 1, count, count)[..., :128, :128]


def _polar(like: Tensor) -> tuple[Tensor, Tensor]:
    x, y = pixels(like)
    return torch.atan2(y - 63.5, x - 63.5), ((x - 63.5) ** 2 + (y - 63.5) ** 2).sqrt()


def _cartesian(angle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    return 63.5 + radius * torch.cos(angle), 63.5 + radius * torch.sin(angle)
