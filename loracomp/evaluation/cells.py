"""GlyphBench's cells as data: what is to be drawn, out of how many adapters, and for which split.

A protocol is called by its number of subjects plus its number of other adapters:

1+1  a subject and a style or filter
2+1  two subjects side by side, and a style or a fine filter
1+2  a subject, a style and a filter
1+3  a subject, a style, a filter and a background color (N = 4)
2+3  two subjects, a style, a fine filter and a background color (N = 5)

Everything follows from hashes of names, so a cell is the same on every machine and in every subset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from itertools import combinations, product

from loracomp.errors import UnknownNameError
from loracomp.evaluation.artwork import Look, Names

Say = Callable[[str, str], str]
"""Kind and name of a part to the words that a prompt uses for it."""
PROTOCOLS = ("1+1", "2+1", "1+2", "1+3", "2+3")
SPLITS = ("test", "validation", "all")
FULL = 192
UNSUITABLE = frozenset({"white", "black"})
"""Backgrounds that are never drawn at random: white has its own share, one-color icons vanish on black."""


@dataclass(frozen=True)
class Cell:
    """One picture to compose.

    Attributes:
        protocol: One of :data:`PROTOCOLS`.
        subjects: One or two slugs; of two, the first stands left.
        style: Name of an artist's style; empty where a filter alone decides the look.
        filter: Name of a filter; empty for none.
        background: Name of the color behind it; empty where the filter brings its own paper.
    """

    protocol: str
    subjects: tuple[str, ...]
    style: str
    filter: str
    background: str

    @property
    def id(self) -> str:
        """Name in records and tables, unique among all cells."""
        parts = ("+".join(self.subjects), self.style, self.filter, self.background)
        return "/".join((self.protocol, *(part or "-" for part in parts)))

    @property
    def look(self) -> str:
        """What the judge has to call the style: the filter where there is one."""
        return self.filter or self.style

    @property
    def cluster(self) -> str:
        """Cells of one cluster are not independent: they share their subjects."""
        return "+".join(self.subjects)

    @cached_property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """Kind and name of each adapter that the cell is composed of."""
        rest = [("style", self.style), ("filter", self.filter)]
        if self.protocol.endswith("+3"):
            rest.append(("background", self.background))
        return (*(("subject", slug) for slug in self.subjects), *((k, n) for k, n in rest if n))


def prompt(cell: Cell, say: Say) -> str:
    """What is asked for, in the words of ``say``; two subjects are asked for side by side."""
    text = " and ".join(f"a {say('subject', slug)} emoji" for slug in cell.subjects)
    if len(cell.subjects) == 2:
        text += " side by side"
    named = [("style", cell.style), ("filter", cell.filter), ("background", cell.background)]
    return ", ".join([text, *(say(kind, name) for kind, name in named if name)])


def plainly(names: Names) -> Say:
    """The words for a part without any adapter's trigger."""

    def say(kind: str, name: str) -> str:
        if kind == "subject":
            return names.subjects[name]
        return names.looks[name].phrase if kind in ("style", "filter") else f"{name} background"

    return say


def split_of(subjects: Iterable[str]) -> str:
    """``validation`` for a quarter of all subjects, ``test`` for the others, empty for a mixture.

    Whatever is tuned is tuned on validation subjects; what is reported is of test subjects.
    """
    found = {"validation" if _rank("glyphbench split", slug) % 4 == 0 else "test" for slug in subjects}
    return found.pop() if len(found) == 1 else ""


def choose(
    protocol: str,
    names: Names,
    has: Callable[[str, str], bool],
    count: int = FULL,
    split: str = "all",
) -> list[Cell]:
    """The first ``count`` cells of a protocol: all looks alike often, and subjects as evenly as can be.

    A shorter choice is the beginning of a longer one.

    Args:
        protocol: One of :data:`PROTOCOLS`.
        names: The subjects, looks and colors that there are.
        has: Whether there is an adapter of this kind and name.
        count: Most cells to choose.
        split: ``test``, ``validation`` or ``all``.

    Raises:
        UnknownNameError: No such protocol or split.
    """
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    pools: dict[tuple[str, str], list[Cell]] = {}
    for cell in _candidates(protocol, names, has):
        if split in ("all", split_of(cell.subjects)):
            pools.setdefault((cell.style, cell.filter), []).append(cell)
    return _evenly([pools[look] for look in sorted(pools, key=lambda look: _rank("look", *look))], count)


def _candidates(protocol: str, names: Names, has: Callable[[str, str], bool]) -> Iterable[Cell]:
    subjects = [slug for slug in names.subjects if has("subject", slug)]
    colors = [color for color in names.colours if color not in UNSUITABLE]
    if protocol.endswith("+3"):
        colors = [color for color in colors if has("background", color)]
    groups = [(slug,) for slug in subjects] if protocol[0] == "1" else _pairs(subjects)
    for group, (style, painter) in product(groups, _looks(protocol, names, has)):
        last = painter or style
        if not all(names.draws(slug, style.name if style else "") for slug in group):
            continue
        paper = bool(last and last.paper)
        color = "" if paper else _color(protocol, group, f"{style}{painter}", colors)
        if protocol.endswith("+3") and not color:
            continue
        yield Cell(protocol, group, style.name if style else "", painter.name if painter else "", color)


def _pairs(subjects: Sequence[str]) -> list[tuple[str, ...]]:
    """Pairs of subjects of one split, in an order of their own."""
    both = [pair for pair in combinations(subjects, 2) if split_of(pair)]
    return [tuple(sorted(pair, key=lambda slug: _rank("side", slug, *sorted(pair)))) for pair in both]


def _looks(
    protocol: str, names: Names, has: Callable[[str, str], bool]
) -> list[tuple[Look | None, Look | None]]:
    """Style and filter of a protocol's cells; None where there is none."""
    styles = [look for look in names.looks.values() if not look.filter and has("style", look.name)]
    filters = [look for look in names.looks.values() if look.filter and has("filter", look.name)]
    if protocol.startswith("2"):
        filters = [look for look in filters if look.fine]
    if protocol.endswith("+1"):
        return [(style, None) for style in styles] + [(None, painter) for painter in filters]
    return list(product(styles, filters))


def _color(protocol: str, group: tuple[str, ...], look: str, colors: Sequence[str]) -> str:
    """White for half of the cells, another color for the others; always another for a color's adapter."""
    draw = _rank("background", protocol, *group, look)
    if draw % 2 == 0 and not protocol.endswith("+3"):
        return "white"
    return colors[draw // 2 % len(colors)] if colors else ""


def _evenly(pools: list[list[Cell]], count: int) -> list[Cell]:
    """Takes turns among the pools; within one, the cell whose subjects were taken least, then by hash."""
    used: Counter[str] = Counter()
    chosen: list[Cell] = []
    while any(pools) and len(chosen) < count:
        for pool in pools:
            if not pool or len(chosen) == count:
                continue
            best = min(pool, key=lambda cell: (sum(used[s] for s in cell.subjects), _rank("cell", cell.id)))
            pool.remove(best)
            used.update(best.subjects)
            chosen.append(best)
    return chosen


@cache
def _rank(*words: str) -> int:
    """A number that follows from words alone."""
    return int.from_bytes(sha256("\0".join(words).encode()).digest()[:8], "big")
