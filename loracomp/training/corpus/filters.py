"""Picture filters, none of which GlyphBench measures with: deterministic, batched, on the CPU.

As in :mod:`loracomp.training.glyph.filters`: straight-alpha pictures (B, 4, 128, 128) and background
colors (B, 3) in [0, 1] give pictures (B, 3, 128, 128). Warps are in :mod:`loracomp.training.corpus.warps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.training.corpus.recolor import hue
from loracomp.training.corpus.warps import (
    blur,
    bulged,
    frosted,
    glitch,
    kaleidoscope,
    pixels,
    rushed,
    swirl,
    tiled,
    waves,
    zoomed,
)
from loracomp.training.glyph.filters import over

OWN_PAPER = frozenset(
    {"relief", "thermal", "stitched", "nightvision", "photograph", "panels", "contours", "xray"}
)
"""Filters whose result does not show the background's color."""


def glass(rgba: Tensor, back: Tensor, cells: int) -> Tensor:
    """Panes of one color each around random points, with dark lead between them."""
    points = _points(cells, seed=cells)
    colors, gap = _nearest(over(rgba, back), points)
    lead = (gap < 1.6).to(rgba.dtype)
    return colors.clamp(0, 1) ** 0.85 * (1 - lead) + 0.06 * lead


def facets(rgba: Tensor, back: Tensor, size: int) -> Tensor:
    """Triangles of one color each: squares cut along alternating diagonals."""
    x, y = pixels(rgba)
    column, row = (x / size).floor(), (y / size).floor()
    u, v = x / size - column, y / size - row
    slanted = torch.where((column + row) % 2 == 0, u > v, u + v > 1)
    return _averaged(over(rgba, back), (row * 64 + column) * 2 + slanted)


def honeycomb(rgba: Tensor, back: Tensor, size: int) -> Tensor:
    """Hexagons of one color each with thin light joints."""
    height = size * math.sqrt(3) / 2
    rows = torch.arange(-1, math.ceil(128 / height) + 2)
    columns = torch.arange(-1, math.ceil(128 / size) + 2)
    x = columns[None, :] * size + 0.5 * size * (rows[:, None] % 2)
    y = (rows[:, None] * height).expand_as(x)
    colors, gap = _nearest(over(rgba, back), torch.stack([x.flatten(), y.flatten()], 1).to(rgba))
    joint = (gap < 1.2).to(rgba.dtype)
    return colors * (1 - joint) + 0.92 * joint


def relief(rgba: Tensor, back: Tensor, color: str) -> Tensor:
    """Light from the upper left on a height field of the drawing, in one material."""
    height = blur(_gray(over(rgba, torch.ones_like(back))) - 0.6 * rgba[:, 3:], 1.0)
    slope = F.pad(height, (2, 2, 2, 2), mode="replicate")
    light = 0.5 + 1.6 * (slope[..., 4:, 4:] - slope[..., :-4, :-4])
    return hue(color, rgba) * (0.35 + 0.9 * light.clamp(0, 1))


def scanlines(rgba: Tensor, back: Tensor, pitch: int) -> Tensor:
    """Dark lines between rows, columns that glow red, green and blue in turn."""
    picture = blur(over(rgba, back), 0.8)
    x, y = pixels(rgba)
    line = 0.45 + 0.55 * (y % pitch < pitch / 2 + 0.5)
    mask = torch.stack([(x % 3 == channel).to(rgba.dtype) for channel in range(3)], 1)[:, :, 0]
    return picture * line * (0.65 + 0.6 * mask) * 1.25


def thermal(rgba: Tensor, back: Tensor) -> Tensor:
    """Warm drawings on cold ground in false colors."""
    heat = blur(0.35 * rgba[:, 3:] + 0.65 * rgba[:, 3:] * (1 - _gray(rgba[:, :3])), 1.8)
    stops = rgba.new_tensor(
        [[0.05, 0.0, 0.25], [0.3, 0.0, 0.55], [0.85, 0.1, 0.35], [1.0, 0.6, 0.05], [1.0, 1.0, 0.85]]
    )
    place = (heat * 1.15).clamp(0, 0.999) * 4
    low = place.floor().long()
    share = place - low
    mixed = stops[low] * (1 - share[..., None]) + stops[low + 1] * share[..., None]
    return mixed[:, 0].permute(0, 3, 1, 2)


def oil(rgba: Tensor, back: Tensor, radius: int) -> Tensor:
    """Each place takes the mean of the calmest of four neighboring squares (Kuwahara's filter)."""
    picture = over(rgba, back)
    side = radius + 1
    wide = F.pad(picture, (radius,) * 4, mode="replicate")
    mean = F.avg_pool2d(wide, side, stride=1)
    spread = (F.avg_pool2d(wide**2, side, stride=1) - mean**2).sum(1, True)
    places = [(0, 0), (0, radius), (radius, 0), (radius, radius)]
    means = torch.stack([mean[..., y : y + 128, x : x + 128] for y, x in places])
    calm = torch.stack([spread[..., y : y + 128, x : x + 128] for y, x in places]).argmin(0)
    return means.gather(0, calm[None].expand(1, *picture.shape))[0]


def stitched(rgba: Tensor, back: Tensor, size: int) -> Tensor:
    """A cross of colored thread per cell on woven linen."""
    del back
    x, y = pixels(rgba)
    cell = (y / size).floor() * 64 + (x / size).floor()
    color = _averaged(rgba[:, :3] * rgba[:, 3:], cell) / _averaged(rgba[:, 3:], cell).clamp_min(1e-3)
    filled = _averaged(rgba[:, 3:], cell) > 0.4
    u, v = x % size - (size - 1) / 2, y % size - (size - 1) / 2
    thread = ((u - v).abs() < 1.2) | ((u + v).abs() < 1.2)
    weave = 0.86 + 0.06 * ((x + y) % 2)
    cloth = weave * rgba.new_tensor([0.97, 0.94, 0.86])[None, :, None, None]
    return torch.where(filled & thread, color.clamp(0, 1), cloth.expand_as(color))


def shadowed(rgba: Tensor, back: Tensor, color: str) -> Tensor:
    """A flat shadow from the drawing to the lower right corner."""
    alpha = shadow = rgba[:, 3:]
    for reach in (1, 2, 4, 8, 16, 32):
        moved = F.pad(shadow, (reach, 0, reach, 0))[..., :128, :128]
        shadow = torch.maximum(shadow, moved)
    ground = back[:, :, None, None] * (1 - 0.85 * shadow) + hue(color, rgba) * 0.85 * shadow
    return rgba[:, :3] * alpha + ground * (1 - alpha)


def nightvision(rgba: Tensor, back: Tensor) -> Tensor:
    """Bright drawings in green with grain and dark corners."""
    del back
    light = 0.15 + rgba[:, 3:] * (0.25 + 0.6 * _gray(rgba[:, :3]))
    grain = 0.12 * (_grain(rgba) - 0.5)
    return (light + grain) * _corners(rgba) * rgba.new_tensor([0.25, 1.0, 0.35])[None, :, None, None]


def photograph(rgba: Tensor, back: Tensor) -> Tensor:
    """Brown tones, faded blacks, grain and dark corners."""
    gray = _gray(over(rgba, 0.5 * back + 0.4))
    tone = 0.16 + 0.78 * gray + 0.1 * (_grain(rgba) - 0.5)
    return tone * _corners(rgba) * rgba.new_tensor([1.0, 0.84, 0.62])[None, :, None, None]


def panels(rgba: Tensor, back: Tensor) -> Tensor:
    """Four small copies, each in three loud colors of its own."""
    del back
    small = F.avg_pool2d(rgba, 2)
    gray = _gray(small[:, :3])
    sets = (
        ("magenta", "gold", "turquoise"),
        ("lime", "plum", "coral"),
        ("navy", "coral", "gold"),
        ("turquoise", "maroon", "lime"),
    )
    made = []
    for ground, dark, light in sets:
        ink = torch.where(gray < 0.55, hue(dark, rgba), hue(light, rgba))
        made.append(ink * small[:, 3:] + hue(ground, rgba) * (1 - small[:, 3:]))
    return torch.cat([torch.cat(made[:2], 3), torch.cat(made[2:], 3)], 2)


def anaglyph(rgba: Tensor, back: Tensor, gap: int) -> Tensor:
    """The red part shifted to one side, green and blue to the other."""
    gray = 0.5 * _gray(over(rgba, back)) + 0.5 * over(rgba, back)
    red, rest = gray.roll(gap, 3)[:, :1], gray.roll(-gap, 3)[:, 1:]
    return torch.cat([red, rest], 1)


def contours(rgba: Tensor, back: Tensor, levels: int) -> Tensor:
    """Brown lines of equal brightness on pale paper."""
    height = blur(_gray(over(rgba, torch.ones_like(back))), 2.0) * levels
    step = F.pad(height.floor(), (1, 1, 1, 1), mode="replicate")
    line = (step[..., 1:-1, 2:] != step[..., 1:-1, :-2]) | (step[..., 2:, 1:-1] != step[..., :-2, 1:-1])
    paper = rgba.new_tensor([0.93, 0.96, 0.86])[None, :, None, None] - 0.12 * (1 - height / levels)
    return torch.where(line, rgba.new_tensor([0.5, 0.28, 0.1])[None, :, None, None], paper)


def xray(rgba: Tensor, back: Tensor) -> Tensor:
    """Dense parts glow pale blue on black."""
    del back
    dense = rgba[:, 3:] * (0.25 + 0.75 * (1 - _gray(rgba[:, :3])))
    rim = (rgba[:, 3:] - blur(rgba[:, 3:], 2.5)).clamp_min(0)
    light = blur(dense, 0.8) * 0.85 + 0.9 * rim
    return 0.03 + light * rgba.new_tensor([0.72, 0.9, 1.0])[None, :, None, None]


FILTERS: dict[str, Callable[..., Tensor]] = {
    "glass": glass,
    "facets": facets,
    "honeycomb": honeycomb,
    "relief": relief,
    "scanlines": scanlines,
    "glitch": glitch,
    "swirl": swirl,
    "waves": waves,
    "kaleidoscope": kaleidoscope,
    "thermal": thermal,
    "oil": oil,
    "stitched": stitched,
    "shadowed": shadowed,
    "nightvision": nightvision,
    "photograph": photograph,
    "panels": panels,
    "frosted": frosted,
    "rushed": rushed,
    "anaglyph": anaglyph,
    "contours": contours,
    "xray": xray,
    "bulged": bulged,
    "tiled": tiled,
    "zoomed": zoomed,
}


def _gray(rgb: Tensor) -> Tensor:
    return (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, keepdim=True)


def _grain(like: Tensor) -> Tensor:
    return torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(9)).to(like)


def _corners(like: Tensor) -> Tensor:
    x, y = pixels(like)
    distance = ((x / 127 - 0.5) ** 2 + (y / 127 - 0.5) ** 2) * 2
    return 1 - 0.75 * distance**1.5


def _points(count: int, seed: int) -> Tensor:
    """Scattered points (count, 2): a jittered grid in random order."""
    source = torch.Generator().manual_seed(seed)
    side = math.ceil(math.sqrt(count))
    step = 128 / side
    at = torch.arange(side) * step + step / 2
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
    return grid + (torch.rand(grid.shape, generator=source) - 0.5) * step * 0.9


def _nearest(picture: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean color of each point's cell, and how far places are from a cell's border in pixels."""
    x, y = pixels(picture)
    places = torch.stack([x.flatten(), y.flatten()], 1)
    nearest = torch.cdist(places, points.to(places)).topk(2, dim=1, largest=False)
    one, two = nearest.values[:, 0], nearest.values[:, 1]
    cell = nearest.indices[:, 0].reshape(1, 1, 128, 128)
    return _averaged(picture, cell), (two - one).reshape(1, 1, 128, 128)


def _averaged(picture: Tensor, cell: Tensor) -> Tensor:
    """Every place has the mean of its cell; ``cell`` (1, 1, H, W) holds numbers from 0."""
    index = cell.long().flatten()
    flat = picture.flatten(2)
    sums = flat.new_zeros(*flat.shape[:2], int(index.max()) + 1).index_add_(2, index, flat)
    counts = torch.bincount(index, minlength=sums.shape[2]).clamp_min(1).to(flat)
    return (sums / counts)[:, :, index].reshape(picture.shape)
