"""Small pictures of adapters: taken from beside the file, from its header, or drawn."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

SIDE = 256
MOST_PIXELS = 1 << 26
_BESIDE = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")
_QUALITY = 82


def from_file(adapter: Path, target: Path) -> bool:
    """Writes the thumbnail of an adapter that brings a picture; False where it brings none that is usable."""
    for ending in _BESIDE:
        picture = adapter.with_name(f"{adapter.stem}{ending}")
        if picture.is_file() and not picture.is_symlink() and shrink(picture, target):
            return True
    raw = _in_header(adapter)
    return raw is not None and shrink(io.BytesIO(raw), target)


def shrink(source: Any, target: Path) -> bool:
    """Writes a picture (path, file or PIL image) as WebP of at most 256 px; False where it is none."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = source if isinstance(source, Image.Image) else Image.open(source)
            if opened.width * opened.height > MOST_PIXELS:
                return False
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    part = target.with_suffix(".part")
    small.save(part, format="WEBP", quality=_QUALITY)
    part.replace(target)
    return True


def _in_header(adapter: Path) -> bytes | None:
    from loracomp.errors import FormatError
    from loracomp.formats.source import Source
    from loracomp.formats.thumbnail import KEY, decoded

    try:
        with Source(adapter) as source:
            text = source.metadata.get(KEY, "")
        return decoded(text) if text else None
    except (FormatError, ValueError):
        return None
