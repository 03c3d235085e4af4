"""What the towers are asked: that an adapter, its words and its pictures find each other among all others.

A step holds adapters of the corpus and, where there are any, concepts that are words and pictures alone
(:mod:`loracomp.training.encoder.wide`). Texts and pictures are matched among themselves; both ways of reading
an adapter (its weights, twice with different layers left out; what it draws) are matched with texts, with
pictures and with other adapters of its concept. What imitated adapters draw is read as if drawn.

A corpus has few concepts, and weights tell little of concepts that no adapter was trained on; where drawings
are read too, weights learn where texts and pictures lie (arXiv:2111.07991), and do not move them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.retrieval.encoder import Towers
from loracomp.retrieval.said import Said
from loracomp.retrieval.towers import DRAWN, Batch
from loracomp.training.encoder.data import Material
from loracomp.training.encoder.losses import agreement, symmetric, within
from loracomp.training.encoder.masks import keeps, thinned
from loracomp.training.encoder.wide import Wide

UNKNOWN = DRAWN // 2
"""The first half of the drawings are of words that nobody knows."""
SHOWS = (0.7, 0.2)
"""Share of imitated drawings in which a subject shows: of unknown words, and of known things."""


@dataclass(frozen=True)
class Drawing:
    """How a step's samples are drawn and changed.

    Attributes:
        batch: Adapters.
        jitter: Spread of the logarithm of an adapter's strength.
        noise: Noise on standardized features.
    """

    batch: int
    jitter: float
    noise: float


@dataclass(frozen=True)
class View:
    """Adapters read in one way: unit vectors (n, 512) and concepts (n,); whether texts move towards them."""

    vectors: Tensor
    concepts: Tensor
    moves: bool


class Objective:
    """The loss of random samples.

    Args:
        material: The corpus, on the device to train on.
        towers: What is trained.
        how: How samples are drawn.
        draws: Random numbers of the CPU.
        noise: Random numbers of the device.
    """

    def __init__(
        self, material: Material, towers: Towers, how: Drawing, draws: torch.Generator, noise: torch.Generator
    ) -> None:
        self.material, self.towers, self.how, self.draws, self.noise = material, towers, how, draws, noise
        self.device = material.concepts.device
        self.patterns = keeps(material.table)
        self.cross = torch.zeros(len(material.table), dtype=torch.bool)
        self.cross[list(material.table.cross)] = True
        self.shown = len(material.shown) > 0

    def __call__(self) -> Tensor:
        """The loss of one step."""
        m, scale, train = self.material, self.towers.scale(), self.material.members("train")
        rows = train[torch.randint(len(train), (self.how.batch,), generator=self.draws).to(train.device)]
        concepts = m.concepts[rows]
        texts = self._one_of(m.spoken, concepts)
        said, spoken = m.states[texts], m.spoken[texts]
        pictures = chosen = None
        if self.shown:
            chosen = self._one_of(m.shown, concepts)
            pictures, chosen = m.pictures[chosen], m.shown[chosen]
        imitated = None
        if m.wide is not None and pictures is not None and chosen is not None:
            further, imitated = self._wide(m.wide)
            first = len(m.names)
            said = Said.join([said, m.wide.states[further, self._number(4, len(further))]])
            spoken = torch.cat([spoken, first + further])
            pictures = torch.cat([pictures, m.wide.pictures[further, self._number(4, len(further))]])
            chosen = torch.cat([chosen, first + further])
        heard = self.towers.text(said)
        seen = None if pictures is None else self.towers.images(self._moved(pictures.float() / 255))
        views, loss = self._views(rows, concepts, imitated)
        if seen is not None and chosen is not None:
            loss = loss + 0.5 * symmetric(heard, seen, spoken[:, None] == chosen, scale)
        for view in views:
            words, shown = (
                (heard, seen) if view.moves else (heard.detach(), None if seen is None else seen.detach())
            )
            loss = loss + symmetric(view.vectors, words, view.concepts[:, None] == spoken, scale)
            loss = loss + within(view.vectors, view.concepts, scale)
            if shown is not None and chosen is not None:
                loss = loss + symmetric(view.vectors, shown, view.concepts[:, None] == chosen, scale)
        return loss

    def _views(
        self, rows: Tensor, concepts: Tensor, imitated: tuple[Tensor, Tensor] | None
    ) -> tuple[list[View], Tensor]:
        """All ways of reading the adapters, and how far two readings of the same weights are apart."""
        views, apart = [], torch.zeros((), device=self.device)
        pictures = self.material.rows.drawn
        draws = self.towers.drawn is not None and pictures is not None
        if self.towers.adapter is not None:
            changed = [self.towers.adapter(self._changed(self.material.rows[rows])) for _ in range(2)]
            apart = 0.1 * agreement(*changed)
            views.append(View(torch.cat(changed), concepts.repeat(2), not draws))
        if draws and pictures is not None:
            found = self.towers.drawings(self._moved(pictures[rows].float() / 255))
            if imitated is not None:
                found = torch.cat([found, self.towers.drawings(imitated[0])])
                concepts = torch.cat([concepts, imitated[1]])
            views.append(View(found, concepts, True))
        return views, apart

    def _wide(self, wide: Wide) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Three further concepts for every adapter, and imitated adapters of a third of them."""
        count, share = 3 * self.how.batch, self.how.batch
        further = self._number(len(wide.things), count)
        usable = wide.usable.nonzero()[:, 0]
        if self.towers.drawn is None or not len(usable) or not share:
            return further, None
        used = usable[self._number(len(usable), share)]
        further = torch.cat([used, further[share:]])
        return further, (self._imitated(wide, used), len(self.material.names) + used)

    def _imitated(self, wide: Wide, used: Tensor) -> Tensor:
        """What adapters of some concepts would draw, shape (n, 8, 3, 64, 64), in [0, 1]."""
        assert self.towers.drawn is not None
        plain = self.towers.drawn.plain
        chance = torch.tensor(SHOWS, device=self.device).repeat_interleave(UNKNOWN)
        shows = (self._random(len(used), DRAWN) < chance) & wide.things[used][:, None]
        picked = self._number(wide.pictures.shape[1], len(used) * DRAWN).unflatten(0, (-1, DRAWN))
        things = wide.pictures[used[:, None], picked]
        found = torch.where(shows[:, :, None, None, None], things, wide.imitated[used]).float() / 255
        blurred = F.avg_pool2d(found.flatten(0, 1), 3, 1, 1, count_include_pad=False).unflatten(
            0, found.shape[:2]
        )
        found = torch.where(self._random(len(used), 1, 1, 1, 1) < 0.5, blurred, found)
        strength = 0.6 + 0.5 * self._random(len(used), 1, 1, 1, 1)
        return (plain + strength * (found - plain)).clamp(0, 1)

    def _one_of(self, owners: Tensor, concepts: Tensor) -> Tensor:
        """One item of each concept, at random; of any where a concept has none."""
        noise = self._random(len(concepts), len(owners))
        return noise.masked_fill(owners[None] != concepts[:, None], -1.0).argmax(1)

    def _moved(self, pictures: Tensor) -> Tensor:
        """Pictures (n, …, H, W), some mirrored, all shifted by up to three pixels together."""
        by = (self._number(7, 2) - 3).tolist()
        mirrored = self._random(len(pictures)) < 0.4
        moved = pictures.roll(by, (-2, -1))
        return torch.where(mirrored.view(-1, *(1,) * (moved.ndim - 1)), moved.flip(-1), moved)

    def _changed(self, rows: Batch) -> Batch:
        """Layers left out, strength and signs changed, noise on the numbers."""
        assert self.towers.adapter is not None
        kept = thinned(rows, self.patterns, self.cross, self.draws)
        sites, spoken = kept.sites.float(), kept.spoken.float().clone()
        louder = torch.randn(len(rows), 1, 1, generator=self.noise, device=self.device) * self.how.jitter
        sites = torch.cat([sites[..., :3] + louder, sites[..., 3:]], 2)
        noise = torch.randn(sites.shape, generator=self.noise, device=self.device)
        sites = sites + self.how.noise * self.towers.adapter.spread * noise
        if spoken.shape[1]:
            # A direction and its echo may change sign together; the pull is an echo of the common state.
            signs = torch.where(self._random(*spoken.shape[:2]) < 0.5, -1.0, 1.0)
            signs[:, :: spoken.shape[1] // 2] = 1
            spoken[..., :-1] *= signs[..., None]
            spoken[..., -1:] += louder / 4
        silent = self._random(len(rows)) < 0.15
        return replace(kept, sites=sites, spoken=spoken, heard=kept.heard & ~silent)

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.noise, device=self.device)

    def _number(self, end: int, count: int) -> Tensor:
        return torch.randint(end, (count,), generator=self.noise, device=self.device)
