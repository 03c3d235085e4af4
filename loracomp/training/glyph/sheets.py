"""Contact sheets: many small pictures on one page, each with its prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

FREE_PROMPTS: tuple[str, ...] = (
    "a happy dog",
    "rocket in space colors",
    "green pizza",
    "a blue apple",
    "a purple cat",
    "a red house on a yellow background",
    "a sad robot",
    "an angry cloud",
    "birthday cake",
    "a pink car, twemoji style",
    "golden trophy on black",
    "a sleepy owl",
    "ice cream on a hot day",
    "a cat and a dog side by side",
    "a sun next to a cloud",
    "coffee cup and a book",
    "love letter",
    "music note, purple background",
    "a fast train",
    "old sailing ship",
    "a slice of cake, noto style",
    "a green dragon",
    "a blue rose",
    "black cat at halloween",
    "scary ghost",
    "christmas tree with gifts",
    "a doctor",
    "a farmer with a hat",
    "winter snow",
    "summer beach",
    "a big red heart",
    "broken heart, black background",
    "a bowl of soup",
    "chef cooking",
    "a smiling moon",
    "fire and ice",
    "a yellow bus, emojione style",
    "a wise old wizard",
    "a brown bear, fluent flat style",
    "spicy food",
    "a strong arm",
    "a gift box with a ribbon",
    "a lucky clover",
    "a football and a trophy",
    "a mountain with snow",
    "a key and a lock",
    "an orange fish on a blue background",
    "good morning",
)


def write_sheet(
    images: Tensor, texts: list[str] | None, path: Path, columns: int = 8, side: int = 128
) -> None:
    """Lay out pictures (N, 3, H, W) in [0, 1], row by row, with texts below them if there are any."""
    foot = 14 if texts else 0
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 4 + foot)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        pixels = (image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        left, top = (i % columns) * (side + 4), (i // columns) * (side + 4 + foot)
        sheet.paste(Image.fromarray(pixels).resize((side, side)), (left + 2, top + 2))
        if texts:
            pen.text((left + 3, top + side + 3), texts[i][:26], fill="black", font_size=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
