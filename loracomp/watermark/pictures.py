"""Pictures as they arrive: every mode and size, animated, damaged, or the same one twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.errors import FormatError, ResourceError

LEAST_SIDE = 16
MOST_PIXELS = 1 << 26
THUMB = 16
ALIKE = 6.0 / 255
"""Root mean square difference of two thumbnails up to which pictures count as one."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Distinct pictures, ready for an extractor.

    Attributes:
        pixels: (images, 3, side, side) RGB in [0, 1].
        names: Files.
        small: How many had a side below half of what the extractor reads.
        duplicates: Files left out, and the file that each repeats.
        notes: What was done to read them.
    """

    pixels: Tensor
    names: tuple[str, ...]
    small: int
    duplicates: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def read_pictures(files: Sequence[Path], side: int) -> Pictures:
    """Reads files and leaves out repetitions.

    Args:
        files: Picture files.
        side: Side in pixels that the extractor reads.

    Raises:
        ResourceError: No such file.
        FormatError: No picture, a damaged or truncated one, one below 16 or above 67 million pixels.
    """
    opened = [_read(file) for file in files]
    notes = [f"{file.name}: {note}" for file, (_, found) in zip(files, opened, strict=True) for note in found]
    kept: list[int] = []
    duplicates = []
    thumbs = [_thumb(pixels) for pixels, _ in opened]
    for index, thumb in enumerate(thumbs):
        twin = next((k for k in kept if float((thumbs[k] - thumb).square().mean().sqrt()) <= ALIKE), None)
        if twin is None:
            kept.append(index)
        else:
            duplicates.append((str(files[index]), str(files[twin])))
    small = sum(2 * min(opened[k][0].shape[1:]) < side for k in kept)
    pixels = torch.stack([fitted(opened[k][0], side) for k in kept])
    return Pictures(pixels, tuple(str(files[k]) for k in kept), small, tuple(duplicates), tuple(notes))


def fitted(picture: Tensor, side: int) -> Tensor:
    """A picture (3, H, W) as (3, side, side), smoothed where it shrinks."""
    if picture.shape[1:] == (side, side):
        return picture
    made = F.interpolate(
        picture[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return made[0].clamp(0, 1)


def _thumb(picture: Tensor) -> Tensor:
    return fitted(picture, THUMB)


def _read(file: Path) -> tuple[Tensor, list[str]]:
    """RGB in [0, 1] of (3, H, W), and what was done."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                _check_size(file, image.size)
                frames = int(getattr(image, "n_frames", 1))
                if frames > 1:
                    image.seek(0)
                pixels, notes = _rgb(image)
    except FileNotFoundError:
        raise ResourceError(f"{file}: no such picture") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no picture" if isinstance(error, UnidentifiedImageError) else "damaged or truncated picture"
        raise FormatError(f"{file}: {reason}; give the file as it was saved") from None
    if frames > 1:
        notes = [f"animated; the first of {frames} frames was read", *notes]
    return pixels, notes


def _check_size(file: Path, size: tuple[int, int]) -> None:
    if min(size) < LEAST_SIDE:
        raise FormatError(
            f"{file}: {size[0]}x{size[1]} pixels, too small to carry a mark; {LEAST_SIDE} at least"
        )
    if size[0] * size[1] > MOST_PIXELS:
        raise FormatError(f"{file}: {size[0]}x{size[1]} pixels, more than any marked picture; shrink it")


def _rgb(image: Any) -> tuple[Tensor, list[str]]:
    """Any mode as RGB: 16 bits by range, transparency over white, CMYK and gray by conversion."""
    from PIL import ImageOps

    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image, np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        gray = torch.from_numpy(np.clip(values / top, 0, 1)).float()
        return gray.expand(3, -1, -1).contiguous(), ["16-bit gray, brought to 8 bits"]
    notes = [] if mode in ("RGB", "RGBA", "P") else [f"{mode} converted to RGB"]
    image = ImageOps.exif_transpose(image)
    if mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
        flat = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        if float(rgba[..., 3].min()) < 1:
            notes.append("transparent parts laid over white")
    else:
        flat = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(flat)).permute(2, 0, 1).contiguous(), notes
