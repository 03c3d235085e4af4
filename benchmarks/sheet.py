"""The comparison sheet of ``docs/composition.md``: subjects × styles, one row per way to draw them.

    python -m benchmarks.sheet

Draws every pair of shipped subject and style with the base alone, each adapter alone, and each
method, puts the artist's original below where there is one, and writes
``docs/images/composition.webp`` and a part of it as ``docs/images/hero.webp``. The same seed everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from loracomp.drawing import draw, plan
from loracomp.evaluation.artwork import open_artwork
from loracomp.evaluation.cells import Cell
from loracomp.evaluation.pixels import as_images
from loracomp.evaluation.sheet import contact_sheet
from loracomp.library import Card, cards
from loracomp.loading import open_base
from loracomp.recipe import Use
from loracomp.training.glyph.filters import FILTERS

HERO = (
    "bicycle in blobs", "watermelon in fluent", "light-bulb in mono", "watermelon in mono", "bicycle in mono",
    "violin in blobs",
)  # fmt: skip
"""Pairs of the README's picture, which are among those that came out well; the sheet shows all."""
BASIC = ("merge", "switch", "composite")
HERO_ROWS = ("style LoRA alone", "subject LoRA alone", "merge", "the artist's original")
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def pairs(count: int) -> list[tuple[Card, Card]]:
    """All pairs of ``count`` shipped subjects and ``count`` shipped styles, by style."""
    chosen = {kind: [card for card in cards() if card.kind == kind][:count] for kind in ("subject", "style")}
    return [(subject, style) for style in chosen["style"] for subject in chosen["subject"]]


def ways(methods: Sequence[str]) -> Iterator[tuple[str, tuple[bool, bool], str]]:
    """Row label, whether subject and style take part, and the method."""
    yield "base alone", (False, False), "merge"
    yield "style LoRA alone", (False, True), "merge"
    yield "subject LoRA alone", (True, False), "merge"
    for method in methods:
        yield method, (True, True), method


def picture(
    pipe: Any, pair: tuple[Card, Card], parts: tuple[bool, bool], method: str, seed: int
) -> Image.Image:
    """One cell of the sheet."""
    subject, style = pair
    prompt = f"a {subject.trigger} emoji, {style.trigger}"
    uses = tuple(Use(card.name) for card, wanted in zip(pair, parts, strict=True) if wanted)
    return draw(plan(prompt, uses=uses, method=method, seed=seed), pipe=pipe)[0][0]


def originals(chosen: list[tuple[Card, Card]]) -> list[Image.Image | None]:
    """What the artists drew for the pairs (for a filter, the filtered picture)."""
    artwork = open_artwork(FILTERS)

    def original(subject: str, style: str) -> Image.Image | None:
        drawn, made = (style, "") if style in artwork.names.tiles else ("", style)
        if not artwork.names.draws(subject, drawn):
            return None
        return as_images(artwork.truth(Cell("1+1", (subject,), drawn, made, "white"))[None])[0]

    return [original(subject.name, style.name) for subject, style in chosen]


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4, help="subjects and styles")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--method", action="append", default=[], help="may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=IMAGES / "composition.webp")
    wanted = parser.parse_args()
    pipe = open_base(device=wanted.device)
    chosen = pairs(wanted.count)
    rows: list[tuple[str, list[Image.Image | None]]] = [
        (label, [picture(pipe, pair, parts, method, wanted.seed) for pair in chosen])
        for label, parts, method in ways(wanted.method or BASIC)
    ]
    rows.append(("the artist's original", originals(chosen)))
    heads = [f"{subject.name} in {style.name}" for subject, style in chosen]
    title = "Unseen subjects in unseen styles, one LoRA for each, same seed"
    save(contact_sheet(rows, heads, title=title), wanted.out)
    picked = [heads.index(head) for head in HERO if head in heads]
    kept = [(label, [cells[index] for index in picked]) for label, cells in rows if label in HERO_ROWS]
    save(contact_sheet(kept, [heads[index] for index in picked]), wanted.out.with_name("hero.webp"))


def save(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet and says where."""
    sheet.save(path, quality=82, method=6)
    print(path)


if __name__ == "__main__":
    main()
