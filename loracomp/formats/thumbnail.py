"""The small picture in a LoRA's header: ``modelspec.thumbnail``, a JPEG of 256 px as a data URI.

What a stranger's header says there is data and no more: it is decoded within limits, and a path or an
address is never opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping

from loracomp.errors import UsageError
from loracomp.formats.gate import printable

KEY = "modelspec.thumbnail"
SIDE = 256
LARGEST_SIDE = 1024
BYTES = 48 << 10
LARGEST_TEXT = 256 << 10
_QUALITIES = (90, 80, 65, 50, 35, 20, 10)
_START = re.compile(r"data:image/(jpeg|png|webp);base64,")


def thumbnail(path: str | os.PathLike[str]) -> str:
    """A picture as the data URI that goes into a header: JPEG, 256 px at most, 48 KiB at most.

    Args:
        path: A picture file; transparency becomes white.

    Raises:
        UsageError: It cannot be read as a picture, or is absurdly large.
    """
    from PIL import Image, ImageOps

    name = printable(os.fspath(path), 200)
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except FileNotFoundError:
        raise UsageError(f"{name}: no such picture; check the path") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: is no picture that can be read ({reason}); give a PNG or JPEG") from None
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def decoded(text: str) -> bytes:
    """The picture file in a header entry: JPEG, PNG or WebP, 256 KiB of text and 1024 px at most.

    Raises:
        ValueError: What is wrong with the entry; it goes on from "the thumbnail".
    """
    from PIL import Image

    if len(text) > LARGEST_TEXT:
        raise ValueError(f"has {len(text)} characters, more than {LARGEST_TEXT}")
    start = _START.match(text)
    if start is None:
        raise ValueError("is no data URI of a picture; files and addresses are never opened")
    try:
        raw = base64.b64decode(text[start.end() :], validate=True)
        with Image.open(io.BytesIO(raw), formats=(start[1].upper(),)) as picture:
            size = picture.size
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"is no {start[1]} picture") from None
    if max(size) > LARGEST_SIDE:
        raise ValueError(f"is {size[0]} × {size[1]} px, more than {LARGEST_SIDE}")
    return raw


def check_given(metadata: Mapping[str, str]) -> None:
    """Raises :class:`UsageError` if the thumbnail among header strings to be written is none."""
    if KEY in metadata:
        try:
            decoded(metadata[KEY])
        except ValueError as error:
            raise UsageError(f"the thumbnail {error}; make one with loracomp.formats.thumbnail") from None
