"""Which (subject, style) cells the judge must not see, and lists of what it may."""

from __future__ import annotations

import numpy as np

from loracomp.training.glyph.filters import FILTERS
from loracomp.training.glyph.packages import ART_SETS, BASE_STYLES
from loracomp.training.glyph.splits import Cell
from loracomp.training.glyph.subjects import Icon

ALL_STYLES: tuple[str, ...] = (*(art.style for art in ART_SETS), *FILTERS)


def draw_judge_cells(icons: list[Icon], each: int = 100, seed: int = 5) -> list[Cell]:
    """``each`` random cells of every style and filter; how ``judge_cells.json`` was made.

    The first 30 % of each style, in the list's order, calibrate the judge; the others test it.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Cell] = []
    for style in ALL_STYLES:
        pool = sorted({i.subject for i in icons if style_shows(i, style)})
        chosen = rng.choice(len(pool), each, replace=False)
        drawn.extend((pool[i], style) for i in chosen)
    return drawn


def style_shows(icon: Icon, style: str) -> bool:
    """True when the icon is drawn in the style, or can be filtered into it (base styles only)."""
    return icon.style == style if style not in FILTERS else icon.style in BASE_STYLES


def judge_may_see(icon: Icon, style: str, held_out: frozenset[Cell]) -> bool:
    """True when the judge trains on this icon in this style.

    A drawing whose own cell is held out is not shown through filters either.
    """
    free = (icon.subject, style) not in held_out and (icon.subject, icon.style) not in held_out
    return free and style_shows(icon, style)


def cell_icons(icons: list[Icon], cells: list[Cell]) -> list[tuple[int, str]]:
    """For each cell the index of an icon that shows it: for filters, the first base style's."""
    order = {style: rank for rank, style in enumerate(BASE_STYLES)}
    at = {(icon.subject, icon.style): i for i, icon in enumerate(icons)}
    out = []
    for subject, style in cells:
        sources = [style] if style not in FILTERS else sorted(BASE_STYLES, key=order.__getitem__)
        found = next(at[subject, s] for s in sources if (subject, s) in at)
        out.append((found, style))
    return out


def halves(cells: list[Cell], share: float = 0.3) -> tuple[list[Cell], list[Cell]]:
    """Split each style's cells, in order, into the first ``share``, which calibrates, and the rest."""
    first: list[Cell] = []
    rest: list[Cell] = []
    for style in dict.fromkeys(style for _, style in cells):
        mine = [cell for cell in cells if cell[1] == style]
        cut = max(1, round(share * len(mine)))
        first += mine[:cut]
        rest += mine[cut:]
    return first, rest
