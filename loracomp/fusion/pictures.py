"""Masks as pictures: read from files, kept as text small enough for a recipe, and back."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

import torch
from torch import Tensor

from loracomp.errors import FormatError

SIDE = 256
"""Longest side that is kept; a 2048-pixel image has as many latent pixels."""


def read_mask(path: Path) -> str:
    """A mask file as text: white where an adapter acts, black where not, grays between; transparent is black.

    The whole picture stands for the whole image, whatever its size; sides above :data:`SIDE` are averaged
    down, so that the text has a few kilobytes at most.

    Raises:
        FormatError: No such file, or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            layers = file.convert("LA")
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such mask; check the path") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: not a readable picture ({error}); masks are PNG files") from error
    gray = Image.composite(layers.getchannel("L"), Image.new("L", layers.size), layers.getchannel("A"))
    share = SIDE / max(gray.size)
    if share < 1:
        sides = [max(1, round(side * share)) for side in gray.size]
        gray = gray.resize((sides[0], sides[1]), Image.Resampling.BOX)
    buffer = io.BytesIO()
    gray.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def mask_of(text: str) -> Tensor:
    """The mask that :func:`read_mask` gave, shape (height, width), in [0, 1].

    Raises:
        FormatError: Other text.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as file:
            if max(file.size) > SIDE:
                raise FormatError(f"a mask of {file.width} × {file.height} pixels; at most {SIDE} are kept")
            gray = file.convert("L")
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise FormatError(f"a mask that is no picture ({error})") from error
    values = torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8)
    return values.view(gray.height, gray.width).float() / 255
