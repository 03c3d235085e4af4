"""The comparison sheet of ``docs/composition.md``: subjects × styles, one row per way to draw them.

    python -m benchmarks.sheet

Draws every pair of shipped subject and style with the base alone, each adapter alone, and each
method, puts the artist's original below where there is one, and writes
``docs/images/composition.png``. The same seed everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from loracomp.drawing import draw, plan
from loracomp.evaluation.originals import original
from loracomp.evaluation.sheet import contact_sheet
from loracomp.fusion import METHODS
from loracomp.library import cards
from loracomp.loading import open_base
from loracomp.recipe import Use

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def names(kind: str, count: int) -> list[str]:
    """The first shipped adapters of a kind."""
    return [card.name for card in cards() if card.kind == kind][:count]


def pairs(count: int) -> list[tuple[str, str]]:
    """All pairs of ``count`` subjects and ``count`` styles, by style."""
    return [(subject, style) for style in names("style", count) for subject in names("subject", count)]


def ways() -> Iterator[tuple[str, tuple[bool, bool], str]]:
    """Row label, whether the style's and the subject's adapter take part, and the method."""
    yield "base alone", (False, False), "merge"
    yield "style LoRA alone", (True, False), "merge"
    yield "subject LoRA alone", (False, True), "merge"
    for method in sorted(METHODS, key=["merge", "switch", "composite"].index):
        yield method, (True, True), method


def picture(
    pipe: Any, pair: tuple[str, str], parts: tuple[bool, bool], method: str, seed: int
) -> Image.Image:
    """One cell of the sheet."""
    subject, style = pair
    prompt = f"a {subject.replace('-', ' ')} emoji, {style} style"
    uses = tuple(Use(name) for name, wanted in ((subject, parts[1]), (style, parts[0])) if wanted)
    return draw(plan(prompt, uses=uses, method=method, seed=seed), pipe=pipe)[0][0]


def main() -> None:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4, help="subjects and styles")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=IMAGES / "composition.png")
    wanted = parser.parse_args()
    pipe = open_base(device=wanted.device)
    chosen = pairs(wanted.count)
    rows: list[tuple[str, list[Image.Image | None]]] = [
        (label, [picture(pipe, pair, parts, method, wanted.seed) for pair in chosen])
        for label, parts, method in ways()
    ]
    rows.append(("the artist's original", [original(subject, style) for subject, style in chosen]))
    heads = [f"{subject} × {style}" for subject, style in chosen]
    sheet = contact_sheet(rows, heads, title="Unseen subjects in unseen styles, one LoRA for each, same seed")
    sheet.quantize(192).save(wanted.out, optimize=True)
    print(wanted.out)


if __name__ == "__main__":
    main()
