"""Many more words and pictures than a corpus has adapters for.

The towers of texts and pictures have to know what a word looks like, as CLIP does for a large base. They
learn it from random concepts of the corpus's kinds, drawn and said in the same ways, without adapters. No
concept of validation or test is among them; whether parts of these are (a filter, a color, a subject in
another combination) is a choice, and both choices can be measured.

For concepts that change how things look, what an adapter would draw is imitated too: the change done to the
base's own drawings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.retrieval.said import Said, TokenStates, of_all
from loracomp.retrieval.towers import DRAWN, PICTURE
from loracomp.retrieval.words import content
from loracomp.training.corpus.arrangements import ARRANGE
from loracomp.training.corpus.concepts import SPLITS, Concept
from loracomp.training.corpus.looks import Look, apply
from loracomp.training.corpus.pictures import draw, shots
from loracomp.training.corpus.pools import pools, recolorings
from loracomp.training.glyph.store import Store

Words = Literal["all", "train"]
SHOTS = 4
_MOVED = ("states", "pictures", "imitated", "things", "usable")
_PALETTES = 40
_SHARES = {
    "thing": 0.15, "thing recolored": 0.18, "pair": 0.14, "thing filtered": 0.10, "artwork": 0.03,
    "recolored": 0.16, "filtered": 0.08, "artwork recolored": 0.04, "artwork filtered": 0.04,
    "recolored and filtered": 0.05, "pair recolored": 0.03,
}  # fmt: skip
"""How often each kind of concept is drawn."""


@dataclass(frozen=True, eq=False)
class Wide:
    """Random concepts as tensors.

    Attributes:
        states: Centered states of the tokens of texts (w, 4).
        pictures: Shape (w, 4, 3, 64, 64), uint8.
        imitated: The base's drawings after the concept's change, shape (w, 8, 3, 64, 64), uint8.
        things: Which of them show subjects of their own, shape (w,), bool.
        usable: Which of them can be imitated, shape (w,), bool.
        words: All words of their texts.
    """

    states: Said
    pictures: Tensor
    imitated: Tensor
    things: Tensor
    usable: Tensor
    words: frozenset[str] = frozenset()

    def to(self, device: torch.device | str) -> Wide:
        """On another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _MOVED})


def key(concept: Concept) -> tuple[Any, ...]:
    """What makes a concept the one it is."""
    return concept.subjects, concept.arrangement, concept.artwork, concept.looks


def random_concepts(
    store: Store, known: Sequence[Concept], count: int, words: Words = "all", seed: int = 1
) -> list[Concept]:
    """``count`` concepts, none of them one of ``known`` that belongs to validation or test.

    Args:
        store: The artwork.
        known: The corpus's concepts.
        count: How many.
        words: ``train``: of parts of training concepts alone; ``all``: of parts of all.
        seed: Decides them.
    """
    barred = {key(concept) for concept in known if concept.split != "train"}
    rng = np.random.default_rng([seed, 77])
    parts = _parts(store, words, seed)
    found: list[Concept] = []
    for number, row in enumerate(_rows(parts, rng)):
        names = tuple(store.subjects[slug].name for slug in row.get("subjects", ()))
        made = Concept(
            id=f"w{100_000 * seed + number}", kind="mixture", trigger="", split="train", names=names, **row
        )
        if key(made) not in barred:
            found.append(made)
        if len(found) == count:
            break
    return found


def _parts(store: Store, words: Words, seed: int) -> dict[str, list[Any]]:
    split = pools(store, 0)
    used = [split[name] for name in SPLITS if words == "all" or name == "train"]
    return {
        "subjects": [slug for pool in used for slug in pool.subjects],
        "filters": [look for pool in used for look in pool.filters],
        "artwork": [name for pool in used for name in pool.artwork],
        "recolorings": [
            look for number in range(_PALETTES) for look in recolorings(np.random.default_rng([seed, number]))
        ],
    }


def _rows(parts: dict[str, list[Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    def pick(name: str) -> Any:
        return parts[name][int(rng.integers(len(parts[name])))]

    def pair() -> dict[str, Any]:
        one, other = (parts["subjects"][i] for i in rng.choice(len(parts["subjects"]), 2, replace=False))
        return {"subjects": (one, other)}

    kinds, shares = list(_SHARES), list(_SHARES.values())
    while True:
        kind = str(rng.choice(kinds, p=shares))
        looks: tuple[Look, ...] = ()
        if "recolored" in kind:
            looks += (pick("recolorings"),)
        if "filtered" in kind:
            looks += (pick("filters"),)
        row: dict[str, Any] = {"looks": looks}
        if kind.startswith("artwork"):
            row["artwork"] = pick("artwork")
        elif kind.startswith("thing"):
            row["subjects"] = (pick("subjects"),)
        elif kind.startswith("pair"):
            arrangement = "sides" if looks else list(ARRANGE)[int(rng.integers(len(ARRANGE)))]
            row |= {**pair(), "arrangement": arrangement}
        yield row


def gathered(
    concepts: Sequence[Concept], store: Store, plain: Tensor, states: TokenStates, common: Tensor, jobs: int
) -> Wide:
    """The concepts' pictures, words and imitations.

    Args:
        concepts: The concepts.
        store: The artwork.
        plain: The base's own drawings, shape (8, 3, H, W), uint8.
        states: The base's text encoder.
        common: What is taken off all text states, shape (d,).
        jobs: Processes that draw.
    """
    texts = [text for concept in concepts for text in concept.descriptions]
    said = of_all(states, texts).minus(common).half()
    told = (store, _cut_out(plain))
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin, initargs=told) as pool:
        work = [concepts[i : i + 32] for i in range(0, len(concepts), 32)]
        rows = list(pool.map(_drawn, work))
    pictures, imitated = (torch.cat([row[place] for row in rows]) for place in (0, 1))
    things = torch.tensor([bool(concept.subjects) for concept in concepts])
    changed = torch.tensor([bool(concept.looks or concept.subjects) for concept in concepts])
    artwork = torch.tensor([bool(concept.artwork) for concept in concepts])
    found = frozenset(word for text in texts for word in content(text))
    return Wide(_by_four(said), pictures, imitated, things, changed & ~artwork, found)


def _by_four(said: Said) -> Said:
    return Said(said.states.unflatten(0, (-1, 4)), said.there.unflatten(0, (-1, 4)))


_held: dict[str, Any] = {}
"""What a drawing process got once: the artwork, and the base's drawings cut out."""


def _begin(store: Store, cut: Tensor) -> None:
    torch.set_num_threads(1)
    _held.update(store=store, cut=cut)


def _drawn(concepts: Sequence[Concept]) -> tuple[Tensor, Tensor]:
    store, cut = _held["store"], _held["cut"]
    pictures, imitated = [], []
    white = torch.ones(DRAWN, 3)
    for concept in concepts:
        pictures.append(_small(draw(concept, shots(concept, store, SHOTS)).permute(0, 3, 1, 2)))
        imitated.append(_small((apply(concept.looks, cut, white) * 255).round()))
    return torch.stack(pictures), torch.stack(imitated)


def _small(pictures: Tensor) -> Tensor:
    """(n, 3, 64, 64) bytes."""
    return F.interpolate(pictures.float(), size=PICTURE, mode="area").round().to(torch.uint8)


def _cut_out(plain: Tensor) -> Tensor:
    """Pictures on white (8, 3, H, W) as straight-alpha bytes (8, H, W, 4): what is white is nothing."""
    there = ((255 - plain.float().amin(1)) / 18).clamp(0, 1)
    return torch.cat([plain, (there[:, None] * 255).to(torch.uint8)], 1).permute(0, 2, 3, 1).contiguous()


def save(wide: Wide, path: Path) -> None:
    """Keeps what took long to draw."""
    from safetensors.torch import save_file

    tensors = {name: getattr(wide, name) for name in _MOVED if name != "states"}
    tensors |= {"states": wide.states.states, "there": wide.states.there}
    packed = {name: value.contiguous() for name, value in tensors.items()}
    save_file(packed, path, {"words": " ".join(sorted(wide.words))})


def load(path: Path) -> Wide:
    """What :func:`save` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = frozenset(str((file.metadata() or {})["words"]).split())
    return Wide(states=Said(tensors.pop("states"), tensors.pop("there")), words=words, **tensors)
