"""The interference report as a picture: pairs of adapters down, blocks of the model across."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loracomp.fusion.interference import Block, Interference

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_CELL = (58, 26)
_MARGIN = 14
_LETTERS = 22
_INK, _PAPER, _FAINT = (32, 32, 32), (255, 255, 255), (238, 238, 238)
_RED, _BLUE = (214, 72, 56), (58, 111, 196)
Row = Sequence[float | None]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class _Panel:
    """One quantity: a title, a value per pair and block, and how far up its scale a value is, in [-1, 1]."""

    title: str
    values: Callable[[Block], Row]
    place: Callable[[float], float]
    form: str


def draw(report: Interference) -> Image:
    """The heat maps of a report, one below the other.

    Red is overlap or, of norms, that the first of a pair is larger; blue is the opposite. Features are
    left out where they were not measured.
    """
    from PIL import Image, ImageDraw

    columns = [*report.blocks, report.whole]
    labels = [_short(" + ".join(report.adapters[index] for index in pair)) for pair in report.pairs]
    panels = [panel for panel in _panels(report) if any(_known(panel.values(block)) for block in columns)]
    left = 2 * _MARGIN + 7 * max(map(len, labels))
    width = left + _CELL[0] * len(columns) + _MARGIN
    height = _MARGIN + sum(3 * _CELL[1] + _CELL[1] * len(labels) for _ in panels)
    image = Image.new("RGB", (max(width, 480), height), _PAPER)
    canvas, top = ImageDraw.Draw(image), _MARGIN
    for panel in panels:
        _grid(canvas, panel, columns, labels, left, top)
        top += _CELL[1] * (3 + len(labels))
    return image


def _panels(report: Interference) -> list[_Panel]:
    def ratios(block: Block) -> Row:
        pairs = [(block.norms[i], block.norms[j]) for i, j in report.pairs]
        return [math.log2(first / second) if first > 0 and second > 0 else None for first, second in pairs]

    return [
        _Panel("cosine of the updates", lambda b: b.cosines, lambda v: v, "{:.2f}"),
        _Panel(
            "|cosine| of what they add, on activations", lambda b: b.features or (), lambda v: v, "{:.2f}"
        ),
        _Panel("shared directions, beyond chance", lambda b: b.overlaps, lambda v: v, "{:.2f}"),
        _Panel("norms, first : second", ratios, lambda v: v / 3, "ratio"),
    ]


def _grid(
    canvas: ImageDraw, panel: _Panel, columns: Sequence[Block], labels: Sequence[str], left: int, top: int
) -> None:
    across, down = _CELL
    canvas.text((_MARGIN, top), panel.title, _INK, _font(13))
    for place, block in enumerate(columns):
        middle = left + across * place + across // 2
        canvas.text((middle, top + down * 1.5), block.name, _INK, _font(11), anchor="mm")
        values = panel.values(block) or [None] * len(labels)
        for row, value in enumerate(values):
            corner = (left + across * place, top + down * (2 + row))
            box = (*corner, corner[0] + across - 2, corner[1] + down - 2)
            canvas.rectangle(box, _FAINT if value is None else _shade(panel.place(value)))
            text = "–" if value is None else _write(panel.form, value)
            canvas.text(
                (corner[0] + across // 2 - 1, corner[1] + down // 2 - 1), text, _INK, _font(11), anchor="mm"
            )
    for row, label in enumerate(labels):
        canvas.text((left - 8, top + down * (2.5 + row)), label, _INK, _font(11), anchor="rm")


def _shade(place: float) -> Color:
    """Paper at 0, red at 1, blue at -1."""
    share, ink = min(abs(place), 1.0), _RED if place >= 0 else _BLUE
    red, green, blue = (round(p + (c - p) * share) for p, c in zip(_PAPER, ink, strict=True))
    return red, green, blue


def _write(form: str, value: float) -> str:
    return f"{2**value:.2f}" if form == "ratio" else form.format(round(value, 2) + 0.0)


def _font(size: int) -> object:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _known(values: Row) -> bool:
    return any(value is not None for value in values)


def _short(text: str) -> str:
    return text if len(text) <= 2 * _LETTERS else f"{text[: 2 * _LETTERS - 1]}…"
