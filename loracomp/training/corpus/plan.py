"""The corpus as a plan: its concepts, and the adapters that are to learn them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loracomp.bases import UNET_TARGETS
from loracomp.training.corpus.arrangements import ARRANGE
from loracomp.training.corpus.concepts import KINDS, SPLITS, Concept, Split
from loracomp.training.corpus.pools import Pool, pools
from loracomp.training.corpus.words import nonsense
from loracomp.training.glyph.store import Store

PICTURES = 24
"""Pictures drawn of each concept; adapters take some of them."""

COUNTS: dict[str, int] = {"subject": 108, "style": 64, "filter": 50, "mixture": 68}
"""Concepts of each kind, at most: filters end with their settings."""

VARIANTS: tuple[Split, ...] = ("train", "train", "validation", "test")
"""Adapters of each concept, and the split that their seeds belong to."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS: dict[str, tuple[str, ...]] = {"all": (), "blocks": UNET_TARGETS, "attention": ATTENTION}


@dataclass(frozen=True)
class Planned:
    """One adapter to train.

    Attributes:
        name: Trigger and number; says nothing of the concept.
        concept: What it is to learn.
        seed_split: Split that its seed belongs to.
        seed: Decides weights, order and noise; the three splits share none.
        rank: Rank.
        steps: Steps of 4 pictures.
        lr: Peak learning rate.
        targets: Key of :data:`TARGETS`.
        pictures: Numbers of the concept's pictures that it sees.
    """

    name: str
    concept: Concept
    seed_split: Split
    seed: int
    rank: int
    steps: int
    lr: float
    targets: str
    pictures: tuple[int, ...]

    def to_row(self) -> dict[str, Any]:
        """Its row of the manifest that ``loracomp train many`` reads."""
        row: dict[str, Any] = {
            "name": self.name,
            "data": f"data/{self.name}",
            "kind": "subject" if self.concept.subjects else "style",
            "base": "glyph",
            "trigger": self.concept.trigger,
            "seed": self.seed,
            "rank": self.rank,
            "steps": self.steps,
            "lr": self.lr,
            "batch": 4,
        }
        if self.targets != "all":
            row["targets"] = list(TARGETS[self.targets])
        return row


def concepts(store: Store, seed: int = 0) -> list[Concept]:
    """All concepts of the corpus; equal stores and seeds give equal concepts."""
    drawn: list[dict[str, Any]] = []
    rng = np.random.default_rng([seed, 1])
    for split, pool in pools(store, seed).items():
        for kind, make in _MAKERS.items():
            share = {"train": 0.7, "validation": 0.15, "test": 0.15}[split]
            rows = make(pool, round(COUNTS[kind] * share), rng)
            drawn += [{"kind": kind, "split": split, **row} for row in rows]
    order = rng.permutation(len(drawn))
    known = [text for subject in store.subjects.values() for text in (subject.name, *subject.keywords)]
    triggers = nonsense(len(drawn), seed, known)
    found = []
    for number, index in enumerate(order):
        names = tuple(store.subjects[slug].name for slug in drawn[index].get("subjects", ()))
        row = {**drawn[index], "names": names, "id": f"c{number:03d}", "trigger": triggers[number]}
        found.append(Concept(**row))
    return found


def adapters(wanted: list[Concept], seed: int = 0, small: bool = False) -> list[Planned]:
    """The variants of every concept, in random order.

    Args:
        wanted: Concepts.
        seed: Decides all that varies.
        small: Ranks of a quarter, for files small enough to keep.
    """
    rng = np.random.default_rng([seed, 2])
    found = []
    for number, concept in enumerate(wanted):
        for variant, split in enumerate(VARIANTS):
            count = int(rng.choice((8, 12, 16, PICTURES)))
            rank = int(rng.choice((2, 4, 8, 16), p=(0.15, 0.25, 0.4, 0.2)))
            found.append(
                Planned(
                    name=f"{concept.trigger}-{variant}",
                    concept=concept,
                    seed_split=split,
                    seed=(SPLITS.index(split) + 1) * 1_000_000 + number * 10 + variant,
                    rank=max(1, rank // 4) if small else rank,
                    steps=int(rng.choice((150, 200, 250))),
                    lr=float(rng.choice((1e-3, 2e-3, 3e-3))),
                    targets=str(rng.choice(list(TARGETS), p=(0.6, 0.25, 0.15))),
                    pictures=tuple(sorted(rng.permutation(PICTURES)[:count].tolist())),
                )
            )
    return [found[index] for index in rng.permutation(len(found))]


def sample(wanted: list[Concept], count: int) -> list[Concept]:
    """``count`` concepts that show all kinds and splits, as evenly as they can."""
    ranked: list[tuple[int, int, Concept]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for place, concept in enumerate(wanted):
        cell = (concept.kind, concept.split)
        ranked.append((seen[cell], place, concept))
        seen[cell] += 1
    return [concept for _, _, concept in sorted(ranked, key=lambda row: row[:2])[:count]]


def _things(pool: Pool, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Subjects recolored, two subjects made into one, and subjects in unseen artwork, in turn."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if number % 5 < 2:
            look = pool.recolorings[number % len(pool.recolorings)]
            rows.append({"subjects": (pool.subjects.pop(),), "looks": (look,)})
        elif number % 5 < 4:
            pair = (pool.subjects.pop(), pool.subjects.pop())
            rows.append({"subjects": pair, "arrangement": list(ARRANGE)[number // 5 % len(ARRANGE)]})
        else:
            look = pool.filters[number % len(pool.filters)]
            rows.append({"subjects": (pool.subjects.pop(),), "looks": (look,)})
    return rows


def _styles(pool: Pool, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The unseen artwork, and recolorings of anything."""
    rows: list[dict[str, Any]] = [{"artwork": name} for name in pool.artwork]
    return rows + [{"looks": (look,)} for look in pool.recolorings[: count - len(rows)]]


def _filters(pool: Pool, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Filters of anything."""
    return [{"looks": (look,)} for look in pool.filters[:count]]


def _mixtures(pool: Pool, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two of: unseen artwork, a recoloring, a filter; or two subjects made into one and a recoloring."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        recolor = pool.recolorings[int(rng.integers(len(pool.recolorings)))]
        strong = pool.filters[int(rng.integers(len(pool.filters)))]
        if number % 4 == 0:
            rows.append({"artwork": pool.artwork[0], "looks": (recolor,)})
        elif number % 4 == 1:
            rows.append({"artwork": pool.artwork[0], "looks": (strong,)})
        elif number % 4 == 2:
            rows.append({"looks": (recolor, strong)})
        else:
            pair = (pool.subjects.pop(), pool.subjects.pop())
            rows.append({"subjects": pair, "arrangement": "sides", "looks": (recolor,)})
    unique = {repr(sorted(row.items())): row for row in rows}
    return list(unique.values())


_Maker = Callable[[Pool, int, np.random.Generator], list[dict[str, Any]]]
_MAKERS: dict[str, _Maker] = dict(zip(KINDS, (_things, _styles, _filters, _mixtures), strict=True))
