"""Subjects that no picture can tell apart: people who differ by gender or hair, and near copies.

``splits/lookalikes.json`` holds the groups, each a sorted list of two or more slugs, as this module
draws them. Accuracy counts a subject as right when the answer is in its group.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.training.glyph.splits import committed
from loracomp.training.glyph.subjects import Subject

_SEXED = {"man", "woman", "men", "women", "person", "people", "boy", "girl", "child", "adult"}
_SAME = {
    "mermaid": "merperson",
    "merman": "merperson",
    "old-man": "older-person",
    "old-woman": "older-person",
    "mrs-claus": "santa-claus",
    "mx-claus": "santa-claus",
}
NEAR = 0.007
"""Mean absolute difference, 0 to 1, under which two pictures of one style count as copies."""


def groups() -> list[list[str]]:
    """The committed groups."""
    found: list[list[str]] = committed("lookalikes.json")
    return found


def group_of(slugs: Iterable[str]) -> dict[str, str]:
    """Each slug's group, named by the group's first member; a slug in no group is its own."""
    names = {slug: group[0] for group in groups() for slug in group}
    return {slug: names.get(slug, slug) for slug in slugs}


def name_key(subject: Subject) -> str:
    """What is left of a person's slug without gender, age, hair and direction."""
    slug = subject.slug
    if subject.group != "People & Body":
        return slug
    if slug in _SAME:
        return _SAME[slug]
    for kind in ("family", "couple-with-heart", "kiss"):
        if slug == kind or slug.startswith(f"{kind}-"):
            return kind
    if "holding-hands" in slug:
        return "holding-hands"
    words = slug.split("-")
    if words[-2:] == ["facing", "right"]:
        words = words[:-2]
    if words[-1] in {"hair", "beard", "bald"}:
        return "person"
    kept = [w for w in words if w not in _SEXED]
    return "-".join(kept) if kept else "person"


def draw_groups(subjects: dict[str, Subject], styles: dict[str, dict[str, Tensor]]) -> list[list[str]]:
    """Groups by name key, joined with pairs that are near copies in two styles or more.

    ``styles`` maps a style to its subjects' standard pictures (3, 128, 128) in [0, 1] on white.
    """
    parent = {slug: slug for slug in subjects}
    first: dict[str, str] = {}
    for slug in sorted(subjects):
        _join(parent, first.setdefault(name_key(subjects[slug]), slug), slug)
    seen: dict[tuple[str, str], int] = {}
    for pictures in styles.values():
        for pair in near_copies(pictures):
            seen[pair] = seen.get(pair, 0) + 1
    for (one, other), count in seen.items():
        if count >= 2:
            _join(parent, one, other)
    members: dict[str, list[str]] = {}
    for slug in sorted(subjects):
        members.setdefault(_root(parent, slug), []).append(slug)
    return sorted(sorted(group) for group in members.values() if len(group) > 1)


def near_copies(pictures: dict[str, Tensor], near: float = NEAR) -> list[tuple[str, str]]:
    """Pairs of slugs whose pictures, shrunk to 32 pixels, differ by less than ``near``."""
    slugs = sorted(pictures)
    small = F.avg_pool2d(torch.stack([pictures[s] for s in slugs]), 4).flatten(1)
    found: list[tuple[str, str]] = []
    for i, slug in enumerate(slugs):
        gap = (small[i + 1 :] - small[i]).abs().mean(1)
        found.extend((slug, slugs[i + 1 + int(j)]) for j in torch.nonzero(gap < near)[:, 0])
    return found


def _root(parent: dict[str, str], slug: str) -> str:
    while parent[slug] != slug:
        parent[slug] = parent[parent[slug]]
        slug = parent[slug]
    return slug


def _join(parent: dict[str, str], one: str, other: str) -> None:
    parent[_root(parent, other)] = _root(parent, one)
