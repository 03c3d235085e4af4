"""A gate's doings as pictures: layers and steps by adapter, and maps over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loracomp.fusion import blocks
from loracomp.fusion.gated.watching import Seen

if TYPE_CHECKING:
    from PIL.Image import Image

_INK, _PAPER, _NONE = (32, 32, 32), (255, 255, 255), (225, 225, 225)
_MORE, _LESS = (214, 72, 56), (58, 111, 196)
_MARGIN, _LINE = 14, 18


def layers_chart(seen: Seen, names: Sequence[str]) -> Image:
    """Layers down, steps across, a panel for each adapter: blue below 1, white at 1, red above, gray: none.

    Args:
        seen: From a run.
        names: Names of the adapters.
    """
    from PIL import Image, ImageDraw

    paths = sorted(seen.layers, key=_depth)
    values = torch.stack([seen.layers[path] for path in paths])
    across = max(3, 240 // values.shape[1])
    down = max(2, min(8, 560 // len(paths)))
    reach = _reach(values)
    marks = _blocks(paths)
    left = _MARGIN + 8 * max(len(name) for name in marks.values())
    width, height = across * values.shape[1], down * len(paths)
    whole = (left + (width + _MARGIN) * len(names) + _MARGIN, height + 4 * _LINE + _MARGIN)
    image = Image.new("RGB", whole, _PAPER)
    canvas, top = ImageDraw.Draw(image), 2 * _LINE
    for place, name in enumerate(names):
        panel = _shaded(values[:, :, place], reach).resize((width, height), Image.Resampling.NEAREST)
        corner = left + place * (width + _MARGIN)
        image.paste(panel, (corner, top))
        mean = float(values[:, :, place].nanmean())
        canvas.text((corner, top - 4), f"{name}, mean {mean:.2f}", _INK, _font(), anchor="ls")
    for row, name in marks.items():
        canvas.text((left - 6, top + down * row), name, _INK, _font(), anchor="rt")
    told = f"steps left to right; blue {1 - reach:.2f}, white 1, red {1 + reach:.2f}"
    canvas.text((left, top + height + _LINE), told, _INK, _font(), anchor="ls")
    return image


def maps_chart(seen: Seen, names: Sequence[str], picture: Image) -> Image:
    """The picture, and each adapter's factor over it in the same colors.

    Args:
        seen: From a run.
        names: Names of the adapters.
        picture: What was drawn.
    """
    from PIL import Image, ImageDraw

    side = 192
    tall = round(side * picture.height / picture.width)
    reach = _reach(seen.maps)
    plain = picture.convert("RGB").resize((side, tall))
    image = Image.new("RGB", (_MARGIN + (side + _MARGIN) * (1 + len(names)), tall + 4 * _LINE), _PAPER)
    canvas, top = ImageDraw.Draw(image), 2 * _LINE
    image.paste(plain, (_MARGIN, top))
    for place, name in enumerate(names, 1):
        heat = _shaded(seen.maps[place - 1], reach).resize((side, tall), Image.Resampling.BICUBIC)
        corner = _MARGIN + place * (side + _MARGIN)
        image.paste(Image.blend(plain.convert("L").convert("RGB"), heat, 0.65), (corner, top))
        mean = float(seen.maps[place - 1].nanmean())
        canvas.text((corner, top - 4), f"{name}, mean {mean:.2f}", _INK, _font(), anchor="ls")
    told = f"blue {1 - reach:.2f}, white 1, red {1 + reach:.2f}"
    canvas.text((_MARGIN, top + tall + _LINE), told, _INK, _font(), anchor="ls")
    return image


def _shaded(values: Tensor, reach: float) -> Image:
    """A picture with one pixel per value: paper at 1, blue at 1 - reach, red at 1 + reach."""
    from PIL import Image

    share = ((values - 1) / reach).clamp(-1, 1)
    paper, more, less = (torch.tensor(color).float() for color in (_PAPER, _MORE, _LESS))
    ink = torch.where(share[..., None] > 0, more, less)
    pixels = paper + (ink - paper) * share.abs()[..., None]
    pixels = torch.where(values.isnan()[..., None], torch.tensor(_NONE).float(), pixels)
    return Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _reach(values: Tensor) -> float:
    """The distance from 1 that most values keep, so that one odd layer does not pale all others."""
    apart = (values[~values.isnan()] - 1).abs()
    return max(0.05, float(apart.quantile(0.98))) if len(apart) else 1.0


def _depth(path: str) -> tuple[int, list[tuple[bool, str]]]:
    """Layers in the order in which they run, as far as their paths tell."""
    order = ("down", "mid", "up", "block", "single")
    short = blocks.names(path)[path.count(".") + 1]
    first = short.split(".")[0]
    place = order.index(first) if first in order else -1
    return place, [(part.isdigit(), part.zfill(4)) for part in path.split(".")]


def _blocks(paths: Sequence[str]) -> dict[int, str]:
    """The row at which each block begins, and its name."""
    found: dict[int, str] = {}
    before = ""
    for row, path in enumerate(paths):
        short = blocks.names(path)[path.count(".") + 1]
        name = ".".join(short.split(".")[:2])
        if name != before:
            found[row], before = name, name
    return found


def _font() -> object:
    from PIL import ImageFont

    return ImageFont.load_default(11)
