"""Writes the artwork that GlyphBench compares with: ``python -m benchmarks.glyphbench --data .data``.

It takes the 64 subjects that the base never saw from the icon store (made by
``python -m loracomp.training.glyph data``) and writes ``loracomp/assets/bench/``: ``names.json`` and one
WebP of tiles for each unseen style and for the style that filters are computed from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from loracomp.evaluation.artwork import ACROSS, SHIPPED, SIDE
from loracomp.training.glyph.filters import FILTER_PHRASES, OWN_PAPER
from loracomp.training.glyph.packages import ART_SETS, UNSEEN_STYLES
from loracomp.training.glyph.palette import COLORS
from loracomp.training.glyph.render import rasterize
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store, load

PLAIN = "noto"
LOSSY = {"fluent": 92}
"""Quality of the pictures with gradients; all others are kept exactly."""
FINE = {"pencil", "watercolor"}
"""Filters in which the judge still names subjects of half the size: 0.92 and 0.67 of them, styles 0.97;
of the others 0.25 (halftone), 0.42 (blueprint), 0.5 (pixel) and 0.75 (neon, which hides colors)."""


def names(store: Store) -> dict[str, object]:
    """The contents of ``names.json``."""
    drawn = {(icon.subject, icon.style) for icon in store.icons}
    slugs = sorted(unseen_subjects())
    styles = {art.style: {"phrase": art.phrase} for art in ART_SETS if not art.seen}
    filters = {
        name: {"phrase": phrase, "filter": True, "paper": name in OWN_PAPER, "fine": name in FINE}
        for name, phrase in FILTER_PHRASES.items()
    }
    return {
        "subjects": {slug: store.subjects[slug].name for slug in slugs},
        "looks": {**styles, **filters},
        "colours": {name: list(color) for name, color in COLORS.items()},
        "plain": PLAIN,
        "tiles": {s: [slug for slug in slugs if (slug, s) in drawn] for s in (PLAIN, *UNSEEN_STYLES)},
    }


def sheet(svgs: list[str]) -> Image.Image:
    """Icons as tiles, eight in a row, transparent."""
    out = np.zeros((-(-len(svgs) // ACROSS) * SIDE, ACROSS * SIDE, 4), np.uint8)
    for i, svg in enumerate(svgs):
        y, x = i // ACROSS * SIDE, i % ACROSS * SIDE
        out[y : y + SIDE, x : x + SIDE] = rasterize(svg)
    out[out[..., 3] == 0] = 0
    return Image.fromarray(out)


def build(data: Path, out: Path) -> int:
    """Writes the folder; its size in bytes."""
    store = load(data)
    rows = names(store)
    table = {(icon.subject, icon.style): icon.svg for icon in store.icons}
    out.mkdir(parents=True, exist_ok=True)
    for style, slugs in rows["tiles"].items():  # type: ignore[attr-defined]
        quality = LOSSY.get(style)
        options = {"quality": quality} if quality else {"lossless": True, "quality": 100}
        sheet([table[slug, style] for slug in slugs]).save(out / f"{style}.webp", method=6, **options)
    (out / "names.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.glyphbench", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    print(f"{arguments.out}: {build(arguments.data, arguments.out) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
