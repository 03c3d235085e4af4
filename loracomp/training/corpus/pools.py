"""What concepts are drawn from, split so that no part of a test concept occurs in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import numpy as np

from loracomp.training.corpus.concepts import SPLITS, Split
from loracomp.training.corpus.looks import Look
from loracomp.training.corpus.recolor import HUES, METALS
from loracomp.training.glyph.lookalikes import group_of
from loracomp.training.glyph.packages import BASE_STYLES, EXTRA_SETS
from loracomp.training.glyph.splits import unseen_subjects
from loracomp.training.glyph.store import Store

Item = TypeVar("Item")
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
ARTWORK = tuple(art.style for art in EXTRA_SETS)

FILTER_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "glass": ({"cells": 49}, {"cells": 100}, {"cells": 196}),
    "facets": ({"size": 10}, {"size": 14}, {"size": 20}),
    "honeycomb": ({"size": 8}, {"size": 12}, {"size": 17}),
    "relief": ({"color": "cream"}, {"color": "rust"}, {"color": "lavender"}),
    "scanlines": ({"pitch": 4}, {"pitch": 6}),
    "glitch": ({"seed": 1}, {"seed": 2}, {"seed": 3}),
    "swirl": ({"degrees": 120}, {"degrees": 220}, {"degrees": -150}),
    "waves": ({"length": 24}, {"length": 44}),
    "kaleidoscope": ({"parts": 4}, {"parts": 6}, {"parts": 8}),
    "thermal": ({},),
    "oil": ({"radius": 4}, {"radius": 8}),
    "stitched": ({"size": 6}, {"size": 9}),
    "shadowed": ({"color": "navy"}, {"color": "coral"}, {"color": "olive"}),
    "nightvision": ({},),
    "photograph": ({},),
    "panels": ({},),
    "frosted": ({"reach": 4}, {"reach": 8}),
    "rushed": ({"degrees": 0}, {"degrees": 45}, {"degrees": 90}),
    "anaglyph": ({"gap": 3}, {"gap": 6}),
    "contours": ({"levels": 8}, {"levels": 14}),
    "xray": ({},),
    "bulged": ({"percent": 70}, {"percent": 130}),
    "tiled": ({"count": 2}, {"count": 3}),
    "zoomed": ({"percent": 30}, {"percent": 50}),
}
"""Every filter of the corpus with its settings."""


@dataclass(frozen=True)
class Pool:
    """What concepts of one split are made of; lists are used up from the end.

    Attributes:
        subjects: Slugs, no two splits share one.
        recolorings: Looks of stage ``recolor``.
        filters: Looks of stage ``filter``; no two splits share a family.
        artwork: Sets of unseen drawings.
    """

    subjects: list[str]
    recolorings: list[Look]
    filters: list[Look]
    artwork: list[str]


def pools(store: Store, seed: int) -> dict[Split, Pool]:
    """The three splits' pools."""
    rng = np.random.default_rng(seed)
    subjects = divided(usable_subjects(store), rng)
    looks = divided(recolorings(rng), rng)
    families = divided(sorted(FILTER_SETTINGS), rng)
    art = dict(zip(SPLITS, rng.permutation(ARTWORK).tolist(), strict=True))
    found: dict[Split, Pool] = {}
    for split in SPLITS:
        filters = [
            Look.of("filter", name, **way) for name in families[split] for way in FILTER_SETTINGS[name]
        ]
        order = rng.permutation(len(filters))
        found[split] = Pool(subjects[split], looks[split], [filters[i] for i in order], [art[split]])
    return found


def usable_subjects(store: Store) -> list[str]:
    """Plain subjects that all of glyph's styles draw, none that it never saw and none that looks like one."""
    groups = group_of(store.subjects)
    hidden = {groups[slug] for slug in unseen_subjects() if slug in groups}
    have: dict[str, set[str]] = {}
    for icon in store.icons:
        have.setdefault(icon.subject, set()).add(icon.style)
    names: dict[str, str] = {}
    for slug in sorted(store.subjects):
        subject = store.subjects[slug]
        free = groups[slug] not in hidden and slug not in unseen_subjects()
        if free and subject.group in GROUPS and have.get(slug, set()) >= set(BASE_STYLES):
            names.setdefault(groups[slug], slug)
    return sorted(names.values())


def recolorings(rng: np.random.Generator) -> list[Look]:
    """Recolorings of all families with colors drawn at random, every pair of colors at most once."""
    pairs = [(a, b) for a, b in permutations(HUES, 2) if a < b and _apart(a, b)]
    order = iter([pairs[i] for i in rng.permutation(len(pairs))])
    made = []
    for _ in range(14):
        dark, light = sorted(next(order), key=lambda name: sum(HUES[name]))
        made.append(Look.of("recolor", "duotone", dark=dark, light=light))
    for number in range(9):
        one, other = next(order)
        made.append(Look.of("recolor", "halved", top=one, bottom=other))
        one, other = next(order)
        made.append(Look.of("recolor", "blended", start=one, end=other, degrees=(0, 45, 90)[number % 3]))
        one, other = next(order)
        made.append(Look.of("recolor", "striped", one=one, other=other, degrees=(0, 45, 90)[number % 3]))
        one, other = next(order)
        made.append(Look.of("recolor", "checked", one=one, other=other))
        one, other = next(order)
        made.append(Look.of("recolor", "dotted", one=one, other=other))
    made += [Look.of("recolor", "turned", degrees=degrees) for degrees in (60, 120, 180, 240, 300)]
    single = rng.permutation(sorted(HUES)).tolist()
    made += [Look.of("recolor", "flat", color=color) for color in single[:7]]
    made += [Look.of("recolor", "rimmed", color=color) for color in single[7:15]]
    made += [Look.of("recolor", "banded", metal=metal) for metal in METALS]
    return made


def divided(items: Sequence[Item], rng: np.random.Generator) -> dict[Split, list[Item]]:
    """The items in random order, divided by :data:`SHARES`; every split gets some."""
    order = rng.permutation(len(items))
    first = round(len(items) * SHARES["train"])
    second = first + round(len(items) * SHARES["validation"])
    cuts = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    return {split: [items[i] for i in cuts[split]] for split in SPLITS}


def _apart(one: str, other: str) -> bool:
    """Whether two colors can be told apart at a glance."""
    return sum(abs(a - b) for a, b in zip(HUES[one], HUES[other], strict=True)) > 200
