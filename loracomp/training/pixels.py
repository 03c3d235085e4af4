"""Picture files as tensors at a base's resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PREPROCESSING = "1: upright, white behind alpha, short side by Lanczos, middle square"
"""Names what :func:`load_pixels` does; part of every cache key, so change it with the code."""


def load_pixels(path: Path, resolution: int) -> Tensor:
    """A picture as (3, resolution, resolution) float32 in [-1, 1].

    Turned upright by its EXIF tag, laid on white, scaled so that the short side fits, middle cut out.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image).convert("RGB")
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1
