"""Pictures whose truth is known: a subject of the corpus in looks of the corpus, drawn together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.filters import OWN_PAPER
from loracomp.training.corpus.pictures import Shot, draw, shots
from loracomp.training.corpus.pools import usable_subjects
from loracomp.training.glyph.packages import BASE_STYLES
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.render import random_placement
from loracomp.training.glyph.store import Store

ALONE = 12
"""Pictures of each concept by itself."""
_TRIES = 50


@dataclass(frozen=True)
class Scene:
    """One picture to draw.

    Attributes:
        parts: Ids of the concepts in it, in the order in which its caption names them.
        concept: All of them as one.
        shot: The drawing, its place and color, and the caption.
    """

    parts: tuple[str, ...]
    concept: Concept
    shot: Shot


class Director:
    """Draws scenes out of concepts.

    Args:
        concepts: The concepts.
        store: The artwork.
        seed: Decides everything.
    """

    def __init__(self, concepts: Sequence[Concept], store: Store, seed: int) -> None:
        self.concepts, self.store = tuple(concepts), store
        self.rng = np.random.default_rng([seed, 7])
        self.things = [c for c in concepts if c.kind == "subject"]
        self.looks = [c for c in concepts if not c.subjects]
        self.drawings = {(icon.subject, icon.style): icon.svg for icon in store.icons}
        self.known = usable_subjects(store)

    def alone(self) -> list[Scene]:
        """Every concept by itself, as its adapters were shown it."""
        return [
            Scene((concept.id,), concept, shot)
            for concept in self.concepts
            for shot in shots(concept, self.store)[:ALONE]
        ]

    def together(self, count: int) -> list[Scene]:
        """``count`` scenes of two to four concepts; raises :class:`TrainingError` where none fit together."""
        found: list[Scene] = []
        for number in range(count * _TRIES):
            if len(found) == count:
                return found
            scene = self._scene(2 + number % 3)
            found += [scene] if scene else []
        if not found:
            raise TrainingError("the corpus has no concepts that go together: subjects and looks are needed")
        return found

    def _scene(self, count: int) -> Scene | None:
        rng = self.rng
        thing = self.things[int(rng.integers(len(self.things)))] if self.things else None
        if rng.random() < 0.2:
            thing = None
        wanted = count - (thing is not None)
        if len(self.looks) < wanted:
            return None
        picked = [self.looks[i] for i in rng.permutation(len(self.looks))[:wanted]]
        looks = sorted(picked, key=_order)
        whole = _united(thing, looks)
        return self._shown(thing, looks, whole) if whole else None

    def _shown(self, thing: Concept | None, looks: Sequence[Concept], whole: Concept) -> Scene | None:
        rng, style = self.rng, whole.artwork or str(self.rng.choice(BASE_STYLES))
        slugs = whole.subjects or (str(rng.choice(self.known)),)
        svgs = tuple(self.drawings.get((slug, style), "") for slug in slugs)
        if not all(svgs):
            return None
        plain = any(look.family in OWN_PAPER for look in whole.looks)
        color = "white" if plain or rng.random() < 0.5 else str(rng.choice(COLOR_NAMES[1:]))
        what = thing.trigger if thing else self.store.subjects[slugs[0]].name
        caption = ", ".join([f"a {what} emoji", *(f"{look.trigger} style" for look in looks)])
        if color != "white":
            caption += f", {color} background"
        parts = (*((thing.id,) if thing else ()), *(look.id for look in looks))
        return Scene(parts, whole, Shot(svgs, random_placement(rng), color, caption))


def _order(concept: Concept) -> tuple[bool, bool]:
    """Artwork is named first, filters last, as they are applied."""
    return not concept.artwork, any(look.stage == "filter" for look in concept.looks)


def _united(thing: Concept | None, looks: Sequence[Concept]) -> Concept | None:
    """All concepts as one, or None where that has no clear meaning."""
    parts = [*([thing] if thing else []), *looks]
    artwork = [part.artwork for part in parts if part.artwork]
    stages = [look for part in parts for look in part.looks]
    filters = [look for look in stages if look.stage == "filter"]
    recolors = [look for look in stages if look.stage == "recolor"]
    if len(artwork) > 1 or len(filters) > 1 or len(recolors) > 2:
        return None
    first = thing or looks[0]
    return replace(
        first,
        kind="mixture",
        artwork=artwork[0] if artwork else "",
        looks=(*recolors, *filters),
    )


def rendered(scenes: Sequence[Scene], workers: int) -> Tensor:
    """The scenes' pictures, shape (scenes, 3, 128, 128), uint8."""
    if workers == 1 or len(scenes) < 64:
        return torch.stack([_render(scene) for scene in scenes])
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        return torch.stack([torch.from_numpy(p) for p in pool.map(_array, scenes, chunksize=32)])


def _render(scene: Scene) -> Tensor:
    return draw(scene.concept, [scene.shot])[0].permute(2, 0, 1).contiguous()


def _array(scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = _render(scene).numpy()
    return found


def _one_thread() -> None:
    torch.set_num_threads(1)


def contents(concepts: Iterable[Concept]) -> Mapping[str, list[str]]:
    """What pictures of the concepts are made of: subjects, sets of drawings, and families of looks."""
    rows = list(concepts)
    return {
        "subjects": sorted({slug for concept in rows for slug in concept.subjects}),
        "artwork": sorted({concept.artwork for concept in rows if concept.artwork}),
        "looks": sorted({look.family for concept in rows for look in concept.looks}),
    }
