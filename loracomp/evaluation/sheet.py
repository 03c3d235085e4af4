"""Contact sheets: pictures in labelled rows and columns, for reports and the documentation.

sheet = contact_sheet([("merge", images), ("switch", others)], ["cat", "dog"], title="Two LoRAs")
sheet.save("sheet.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN = 14
GAP = 6
INK = (38, 40, 46)
EMPTY = (240, 240, 242)
FRAME = (222, 222, 226)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image | None]]],
    columns: Sequence[str] = (),
    *,
    title: str = "",
    cell: int = 128,
    text: int = 14,
    label_width: int = 180,
) -> Image:
    """A white sheet with one picture per cell, thin frames, and wrapped labels that overlap nothing.

    Args:
        rows: A label and the row's pictures; None, or a missing picture at the end, is a grey cell.
        columns: Labels above the columns; empty for none.
        title: A line above everything; wrapped to the sheet's width.
        cell: Side of a cell in pixels; pictures are scaled to fit in it, their proportions kept.
        text: Size of the letters in pixels.
        label_width: Most pixels a row's label takes before it is wrapped.

    Raises:
        ValueError: No rows, or more pictures in a row than columns.
    """
    from PIL import Image, ImageDraw

    width = max((len(pictures) for _, pictures in rows), default=0)
    if not width or (columns and width > len(columns)):
        raise ValueError(f"{len(rows)} rows of up to {width} pictures do not fit {len(columns)} columns")
    width = len(columns) or width
    font, bold = _font(text), _font(round(text * 1.35))
    labels = [_wrapped(label, font, label_width) for label, _ in rows]
    heads = [_wrapped(label, font, cell) for label in columns]
    left = MARGIN + _side(labels, font)
    places = [left + column * (cell + GAP) for column in range(width)]
    total = places[-1] + cell + MARGIN
    headline = _wrapped(title, bold, total - 2 * MARGIN)
    top = MARGIN + _height(headline, bold) + max((_height(head, font) for head in heads), default=0)
    tall = [max(cell, _height(label, font)) + GAP for label in labels]
    sheet = Image.new("RGB", (total, top + sum(tall) - GAP + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    if headline:
        pen.multiline_text((MARGIN, MARGIN), headline, INK, bold)
    for x, head in zip(places, heads, strict=False):
        pen.multiline_text((x + cell // 2, top - GAP), head, INK, font, anchor="md", align="center")
    for (_, pictures), label, height in zip(rows, labels, tall, strict=True):
        pen.multiline_text((left - 2 * GAP, top + cell // 2), label, INK, font, anchor="rm", align="right")
        for column, x in enumerate(places):
            _place(sheet, pen, pictures[column] if column < len(pictures) else None, (x, top), cell)
        top += height
    return sheet


def _place(sheet: Image, pen: Any, picture: Image | None, corner: tuple[int, int], cell: int) -> None:
    """Draws a picture in the middle of its cell, or a grey cell where there is none."""
    from PIL import Image as Pillow

    x, y = corner
    box = (x - 1, y - 1, x + cell, y + cell)
    if picture is None:
        pen.rectangle(box, fill=EMPTY, outline=FRAME)
        return
    pen.rectangle(box, outline=FRAME)
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.convert("RGB")
    if size != picture.size:
        fitted = fitted.resize(size, Pillow.Resampling.LANCZOS)
    sheet.paste(fitted, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _wrapped(label: str, font: Any, width: int) -> str:
    """The label with line breaks between words, and inside words that are too long, so that it fits."""
    lines: list[str] = []
    for word in label.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while font.getlength(word) > width and len(word) > 1:
            kept = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:kept])
            word = word[kept:]
        lines.append(word)
    return "\n".join(lines)


def _box(label: str, font: Any) -> tuple[float, float]:
    from PIL import Image, ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = pen.multiline_textbbox((0, 0), label, font)
    return right - left, bottom - min(top, 0)


def _side(labels: Sequence[str], font: Any) -> int:
    """Pixels that the column of row labels takes, its distance to the pictures included."""
    widest = max((_box(label, font)[0] for label in labels if label), default=0)
    return round(widest) + 2 * GAP if widest else 0


def _height(label: str, font: Any) -> int:
    return round(_box(label, font)[1]) + 2 * GAP if label else 0
