"""The random part of a gate's training: which adapters, which picture, whose words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from loracomp.errors import TrainingError
from loracomp.training.gate.material import Pictures
from loracomp.training.gate.settings import Settings

WHOLE, SOLO, OTHER = 0, 1, 2
"""Kinds of samples: the true picture of all; one adapter's own drawing; another one's words."""


@dataclass(frozen=True)
class Batch:
    """Samples of one step, on the CPU.

    Attributes:
        chosen: Adapters of each sample, shape (S, N).
        picture: Which picture is diffused, shape (S,).
        words: Which caption is said, shape (S,); the caption behind the last one is empty.
        kind: :data:`WHOLE`, :data:`SOLO` or :data:`OTHER`, shape (S,); those of :data:`SOLO` come first.
        asked: Place among the sample's adapters of the first one that the picture is of, shape (S,).
    """

    chosen: Tensor
    picture: Tensor
    words: Tensor
    kind: Tensor
    asked: Tensor


class Draws:
    """Draws samples.

    Args:
        pictures: The scenes.
        adapters: Positions of each concept's adapters in the bank.
        settings: Shares of the kinds.
    """

    def __init__(self, pictures: Pictures, adapters: Mapping[str, Sequence[int]], settings: Settings) -> None:
        self.pictures, self.settings = pictures, settings
        self.adapters = {name: list(rows) for name, rows in adapters.items()}
        self.concepts = sorted(self.adapters)
        self.by_size: dict[int, list[int]] = {}
        for number, parts in enumerate(pictures.parts):
            self.by_size.setdefault(len(parts), []).append(number)
        self.alone: dict[str, list[int]] = {}
        for number in self.by_size.get(1, []):
            self.alone.setdefault(pictures.parts[number][0], []).append(number)
        if not self.alone:
            raise TrainingError("no pictures of single concepts; render the scenes anew")

    def counts(self) -> tuple[int, ...]:
        """Numbers of adapters that the settings ask for and there are concepts for.

        One adapter teaches nothing where the gate fades to the identity for it.
        """
        least, most = 2 if self.settings.form.solo else 1, len(self.concepts)
        found = tuple(count for count in self.settings.counts if least <= count <= most)
        if not found:
            raise TrainingError(
                f"{most} concepts for {self.settings.counts} adapters at once; {least} or more"
            )
        return found

    def batch(self, count: int, size: int, rng: Random) -> Batch:
        """``size`` samples of ``count`` adapters, of each kind as many as its share, the solo ones first."""
        rows = [self._sample(count, kind, rng) for kind in self._kinds(count, size)]
        return Batch(*(torch.tensor(part) for part in zip(*rows, strict=True)))

    def _sample(self, count: int, kind: int, rng: Random) -> tuple[list[int], int, int, int, int]:
        sizes = [size for size in self.by_size if 1 < size <= count]
        size = 1
        if kind == WHOLE:
            # Mostly as many concepts as fit, now and then fewer, so that some adapters are not asked for.
            size = rng.choice(sizes) if rng.random() < 0.2 else max(sizes)
        picture = rng.choice(self.by_size[size])
        parts = self.pictures.parts[picture]
        rest = [name for name in self.concepts if name not in parts]
        names = [*parts, *rng.sample(rest, count - len(parts))]
        words = picture
        if kind == OTHER:
            words = rng.choice(self.alone[names[1]])
        elif rng.random() < self.settings.empty:
            words = len(self.pictures.captions)
        rng.shuffle(names)
        chosen = [rng.choice(self.adapters[name]) for name in names]
        return chosen, picture, words, kind, names.index(parts[0])

    def _kinds(self, count: int, size: int) -> list[int]:
        """Equal numbers in every step, so that the work of a step can be recorded."""
        if not any(1 < parts <= count for parts in self.by_size):
            return [SOLO] * size
        other = round(size * self.settings.solo / 3) if self.settings.hinge else 0
        solo = round(size * self.settings.solo) - other
        return [SOLO] * solo + [OTHER] * other + [WHOLE] * (size - solo - other)
