"""Attacks on pictures: (images, 3, H, W) in [0, 1] in and out, each with the grid of levels that is run.

Pictures are in 8 bits before and after. Sizes may change, as they do when somebody crops; readers bring them
back. Grids are those of WAVES, VideoSeal, Stable Signature and AquaLoRA where these have one.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.registry import Registry
from loracomp.watermark.distortions import blur, colored, cropped, resized

Change = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class ImageAttack:
    """One kind of attack.

    Attributes:
        change: Pictures and a level to pictures.
        levels: The grid.
        unit: What a level is.
    """

    change: Change
    levels: tuple[float, ...]
    unit: str

    def __call__(self, pictures: Tensor, level: float) -> Tensor:
        """The attacked pictures, in 8 bits."""
        made = self.change(eight_bits(pictures), level)
        return eight_bits(made)


IMAGE_ATTACKS: Registry[ImageAttack] = Registry("image attack", group="loracomp.image_attacks")


def image_attack(name: str, levels: tuple[float, ...], unit: str, summary: str) -> Callable[[Change], Change]:
    """Decorator that files an attack."""

    def add(change: Change) -> Change:
        IMAGE_ATTACKS.register(name, summary=summary)(ImageAttack(change, levels, unit))
        return change

    return add


def eight_bits(pictures: Tensor) -> Tensor:
    """As files hold them."""
    return (pictures.clamp(0, 1) * 255).round() / 255


def _source(level: float) -> torch.Generator:
    return torch.Generator().manual_seed(round(level * 1000) + 17)


@image_attack("jpeg", (90, 75, 50, 30, 10), "quality", "libjpeg")
def jpeg(pictures: Tensor, level: float) -> Tensor:
    """Written and read by libjpeg."""
    from PIL import Image

    out = []
    for picture in (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=int(level))
        out.append(torch.from_numpy(np.array(Image.open(buffer))))
    return torch.stack(out).permute(0, 3, 1, 2).to(pictures) / 255


@image_attack("crop", (0.9, 0.7, 0.5, 0.25, 0.1), "area", "cut out of the middle")
def crop(pictures: Tensor, level: float) -> Tensor:
    """The middle, smaller."""
    top, side = _middle(pictures, level)
    return pictures[..., top : top + side, top : top + side]


@image_attack("crop-resize", (0.9, 0.7, 0.5, 0.25, 0.1), "area", "cut out of the middle and enlarged")
def crop_resize(pictures: Tensor, level: float) -> Tensor:
    """The middle, at the old size."""
    top, side = _middle(pictures, level)
    return cropped(pictures, top, top, side)


def _middle(pictures: Tensor, area: float) -> tuple[int, int]:
    whole = pictures.shape[-1]
    side = max(8, round(whole * area**0.5))
    return (whole - side) // 2, side


@image_attack("resize", (0.9, 0.7, 0.5, 0.3), "side", "shrunk and enlarged")
def resize(pictures: Tensor, level: float) -> Tensor:
    """There and back."""
    return resized(pictures, level)


@image_attack("rotate", (5, 15, 45, 90), "degrees", "turned, white corners")
def rotate(pictures: Tensor, level: float) -> Tensor:
    """Bilinear, by any angle."""
    if level == 90:
        return pictures.rot90(1, (2, 3))
    angle = torch.tensor(level * torch.pi / 180)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]]).to(pictures)
    places = F.affine_grid(turn.expand(len(pictures), -1, -1), list(pictures.shape), align_corners=False)
    return 1 + F.grid_sample(pictures - 1, places, align_corners=False)


@image_attack("flip", (1,), "", "mirrored")
def flip(pictures: Tensor, level: float) -> Tensor:
    """Left and right exchanged."""
    return pictures.flip(3)


@image_attack("blur", (0.5, 1, 2, 4), "sigma px", "Gaussian")
def blurred(pictures: Tensor, level: float) -> Tensor:
    """At native size."""
    return blur(pictures, level)


@image_attack("noise", (0.02, 0.05, 0.1, 0.2), "deviation", "Gaussian")
def noise(pictures: Tensor, level: float) -> Tensor:
    """Independent in every value."""
    return pictures + level * torch.randn(pictures.shape, generator=_source(level)).to(pictures)


def _ones(pictures: Tensor, level: float) -> Tensor:
    return torch.full((len(pictures),), level)


@image_attack("brightness", (0.5, 0.75, 1.5, 2), "factor", "all values times a factor")
def brightness(pictures: Tensor, level: float) -> Tensor:
    """Clipped."""
    one = _ones(pictures, 1.0)
    return colored(pictures, _ones(pictures, level), one, one)


@image_attack("contrast", (0.5, 0.75, 1.5, 2), "factor", "distance from the mean times a factor")
def contrast(pictures: Tensor, level: float) -> Tensor:
    """Clipped."""
    one = _ones(pictures, 1.0)
    return colored(pictures, one, _ones(pictures, level), one)


@image_attack("saturation", (0.5, 0.75, 1.5, 2), "factor", "distance from gray times a factor")
def saturation(pictures: Tensor, level: float) -> Tensor:
    """Clipped."""
    one = _ones(pictures, 1.0)
    return colored(pictures, one, one, _ones(pictures, level))


@image_attack("hue", (-0.25, -0.1, 0.1, 0.25), "turns", "colors turned")
def hue(pictures: Tensor, level: float) -> Tensor:
    """A rotation about the gray axis."""
    angle = torch.tensor(2 * torch.pi * level)
    cos, sin = angle.cos(), angle.sin()
    third, root = (1 - cos) / 3, (1 / 3) ** 0.5 * sin
    row = torch.stack([cos + third, third - root, third + root])
    matrix = torch.stack([row, row.roll(1), row.roll(2)])
    return torch.einsum("dc,bchw->bdhw", matrix.to(pictures), pictures)


@image_attack("sharpness", (1.5, 10), "factor", "distance from a blurred copy times a factor")
def sharpness(pictures: Tensor, level: float) -> Tensor:
    """Unsharp masking with a blur of one pixel."""
    soft = blur(pictures, 1.0)
    return soft + level * (pictures - soft)


@image_attack("erase", (0.05, 0.1, 0.25), "area", "a square made gray")
def erase(pictures: Tensor, level: float) -> Tensor:
    """The same place in all pictures."""
    whole = pictures.shape[-1]
    side = max(1, round(whole * level**0.5))
    top, left = torch.randint(whole - side + 1, (2,), generator=_source(level)).tolist()
    out = pictures.clone()
    out[..., top : top + side, left : left + side] = 0.5
    return out


@image_attack("combo", (80, 60, 40), "quality", "JPEG, 71 % crop and half brightness (VideoSeal)")
def combo(pictures: Tensor, level: float) -> Tensor:
    """One after the other."""
    return brightness(crop_resize(jpeg(pictures, level), 0.71), 0.5)


@image_attack("all", (1, 2), "strength", "rotation, crop, color, blur, noise and JPEG together (WAVES)")
def everything(pictures: Tensor, level: float) -> Tensor:
    """Mild each, strong together."""
    made = crop_resize(rotate(pictures, 4.5 * level), 1 - 0.1 * level)
    made = contrast(brightness(made, 1 + 0.1 * level), 1 + 0.1 * level)
    made = noise(blurred(made, 0.4 * level), 0.02 * level)
    return jpeg(eight_bits(made), 95 - 20 * level)
