"""Recolorings: drawings in other colors, (B, 4, 128, 128) straight alpha in [0, 1] in and out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HUES: dict[str, tuple[int, int, int]] = {
    "teal": (0, 128, 128),
    "gold": (232, 178, 20),
    "magenta": (214, 20, 150),
    "navy": (18, 32, 92),
    "lime": (160, 224, 30),
    "coral": (255, 116, 92),
    "lavender": (190, 170, 240),
    "olive": (112, 116, 30),
    "maroon": (112, 16, 36),
    "turquoise": (50, 214, 200),
    "peach": (255, 206, 170),
    "charcoal": (48, 52, 58),
    "cream": (252, 244, 214),
    "rust": (176, 74, 24),
    "mint": (176, 244, 206),
    "plum": (104, 36, 104),
}
"""Colors that recolorings use; backgrounds have others."""

METALS: dict[str, tuple[str, str, str]] = {
    "gold": ("rust", "gold", "cream"),
    "copper": ("maroon", "rust", "peach"),
    "bronze": ("charcoal", "olive", "gold"),
    "steel": ("charcoal", "navy", "lavender"),
}


def hue(name: str, like: Tensor) -> Tensor:
    """A named color as (3, 1, 1) in [0, 1]."""
    return like.new_tensor(HUES[name])[:, None, None] / 255


def lightness(rgba: Tensor) -> Tensor:
    """(B, 1, H, W) brightness, stretched so that each drawing's own darkest and lightest 5 % are 0 and 1."""
    gray = (rgba[:, :3] * rgba.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, True)
    inside = torch.where(rgba[:, 3:] > 0.5, gray, torch.nan).flatten(1)
    low, high = (torch.nanquantile(inside, share, dim=1).nan_to_num(0.5) for share in (0.05, 0.95))
    low, high = low[:, None, None, None], high[:, None, None, None]
    return ((gray - low) / (high - low).clamp_min(0.1)).clamp(0, 1)


def duotone(rgba: Tensor, dark: str, light: str) -> Tensor:
    """Brightness as a mixture of two colors."""
    share = lightness(rgba)
    return _with(rgba, hue(dark, rgba) * (1 - share) + hue(light, rgba) * share)


def halved(rgba: Tensor, top: str, bottom: str) -> Tensor:
    """One color above the middle, another below; shading stays."""
    y = _rows(rgba)
    return _shaded(rgba, torch.where(y < 0.5, hue(top, rgba), hue(bottom, rgba)))


def blended(rgba: Tensor, start: str, end: str, degrees: int) -> Tensor:
    """A gradient across the picture in a direction; shading stays."""
    angle = math.radians(degrees)
    share = (_columns(rgba) - 0.5) * math.cos(angle) + (_rows(rgba) - 0.5) * math.sin(angle)
    share = (share * 1.5 + 0.5).clamp(0, 1)
    return _shaded(rgba, hue(start, rgba) * (1 - share) + hue(end, rgba) * share)


def striped(rgba: Tensor, one: str, other: str, degrees: int) -> Tensor:
    """Stripes of two colors, 10 pixels wide each."""
    angle = math.radians(degrees)
    place = (_columns(rgba) * math.cos(angle) + _rows(rgba) * math.sin(angle)) * 128 / 10
    return _shaded(rgba, torch.where(place.floor() % 2 == 0, hue(one, rgba), hue(other, rgba)))


def checked(rgba: Tensor, one: str, other: str) -> Tensor:
    """A checkerboard of 12-pixel squares."""
    place = (_columns(rgba) * 128 / 12).floor() + (_rows(rgba) * 128 / 12).floor()
    return _shaded(rgba, torch.where(place % 2 == 0, hue(one, rgba), hue(other, rgba)))


def dotted(rgba: Tensor, one: str, other: str) -> Tensor:
    """Round dots of one size on a ground, in rows that are offset."""
    row = (_rows(rgba) * 128 / 14).floor()
    x = (_columns(rgba) * 128 / 14 + 0.5 * (row % 2)) % 1 - 0.5
    y = (_rows(rgba) * 128 / 14) % 1 - 0.5
    inside = ((0.34 - (x**2 + y**2).sqrt()) * 14 + 0.5).clamp(0, 1)
    return _shaded(rgba, hue(one, rgba) * inside + hue(other, rgba) * (1 - inside))


def turned(rgba: Tensor, degrees: int) -> Tensor:
    """All hues rotated around the gray axis (Rodrigues' formula)."""
    angle = math.radians(degrees)
    cosine, third = math.cos(angle), (1 - math.cos(angle)) / 3
    side = math.sin(angle) / math.sqrt(3)
    a, b, c = cosine + third, third - side, third + side
    matrix = rgba.new_tensor([[a, b, c], [c, a, b], [b, c, a]])
    return _with(rgba, torch.einsum("oc,bchw->bohw", matrix, rgba[:, :3]))


def flat(rgba: Tensor, color: str) -> Tensor:
    """One color all over, with a hint of the drawing's own edges."""
    return _with(rgba, hue(color, rgba) * (0.88 + 0.12 * lightness(rgba)))


def rimmed(rgba: Tensor, color: str) -> Tensor:
    """A border 5 pixels wide around the drawing, which keeps its colors."""
    alpha = rgba[:, 3:]
    wide = F.avg_pool2d(F.max_pool2d(alpha, 11, stride=1, padding=5), 3, stride=1, padding=1)
    mixed = rgba[:, :3] * alpha + hue(color, rgba) * (1 - alpha)
    return torch.cat([mixed, torch.maximum(wide, alpha)], 1)


def banded(rgba: Tensor, metal: str) -> Tensor:
    """Three colors of a metal in bands of brightness, slanted as light falls on it."""
    share = 0.6 * lightness(rgba) + 0.4 * (0.5 + 0.5 * torch.sin(8 * (_columns(rgba) + 0.6 * _rows(rgba))))
    dark, middle, light = (hue(name, rgba) for name in METALS[metal])
    lower, upper = (share * 2).clamp(0, 1), (share * 2 - 1).clamp(0, 1)
    return _with(rgba, (dark * (1 - lower) + middle * lower) * (1 - upper) + light * upper)


RECOLORINGS: dict[str, Callable[..., Tensor]] = {
    "duotone": duotone,
    "halved": halved,
    "blended": blended,
    "striped": striped,
    "checked": checked,
    "dotted": dotted,
    "turned": turned,
    "flat": flat,
    "rimmed": rimmed,
    "banded": banded,
}


def _with(rgba: Tensor, color: Tensor) -> Tensor:
    return torch.cat([color.clamp(0, 1).expand_as(rgba[:, :3]), rgba[:, 3:]], 1)


def _shaded(rgba: Tensor, color: Tensor) -> Tensor:
    """A color field with the drawing's shading: darkened by its shadows, lightened by its highlights."""
    gray = lightness(rgba)
    dark = color * (0.45 + 0.75 * gray)
    return _with(rgba, dark + (1 - dark) * (gray - 0.85).clamp_min(0) * 2)


def _rows(like: Tensor) -> Tensor:
    side = like.shape[-2]
    return (torch.arange(side, dtype=like.dtype)[None, None, :, None] + 0.5) / side + 0 * like[:, :1]


def _columns(like: Tensor) -> Tensor:
    side = like.shape[-1]
    return (torch.arange(side, dtype=like.dtype)[None, None, None, :] + 0.5) / side + 0 * like[:, :1]
