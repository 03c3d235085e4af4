"""The judge: what a picture shows, in which style, on which background, and how well it fits a text.

    judge = open_judge("glyph")
    judge.subjects(pictures)            # (B, names), in the order of judge.vocabulary.heads

A judge is an image–text model of its own that shares no weights with what it judges. ``glyph`` is the
one that ships with the package, for the embedded base; ``openclip:MODEL/WEIGHTS`` loads public weights
for the large bases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Protocol

from torch import Tensor

from loracomp.errors import UnknownNameError
from loracomp.registry import Registry

CLIPSCORE_WEIGHT = 2.5
"""Hessel et al. 2021, CLIPScore, arXiv:2104.08718, §3."""


@dataclass(frozen=True)
class Vocabulary:
    """Everything that a judge can name, each with the text that describes it.

    Attributes:
        subjects: Text of each subject, by slug ("a red apple emoji").
        styles: Text of each style or filter, by name.
        colours: Text of each background, by color.
        groups: Look-alikes: subjects that no picture tells apart; each counts as its first member.
    """

    subjects: Mapping[str, str]
    styles: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def head_of(self) -> Mapping[str, str]:
        """The first member of each subject's group; a subject without look-alikes is its own."""
        merged = {slug: group[0] for group in self.groups for slug in group}
        return {slug: merged.get(slug, slug) for slug in self.subjects}

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The distinct heads, sorted: the names that subject probabilities are about."""
        return tuple(sorted(set(self.head_of.values())))

    def subject(self, slug: str) -> int:
        """Column of a subject's group in :meth:`Judge.subjects`; raises :class:`UnknownNameError`."""
        if slug not in self.head_of:
            raise UnknownNameError("subject", slug, self.head_of)
        return self.heads.index(self.head_of[slug])

    def style(self, name: str) -> int:
        """Column of a style in :meth:`Judge.styles`; raises :class:`UnknownNameError`."""
        return _position("style", name, tuple(self.styles))

    def colour(self, name: str) -> int:
        """Column of a background in :meth:`Judge.colours`; raises :class:`UnknownNameError`."""
        return _position("background", name, tuple(self.colours))


class Judge(Protocol):
    """What the benchmark asks of a judge. Pictures are (B, 3, H, W) RGB in [0, 1]."""

    @property
    def name(self) -> str:
        """What it was opened by."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What it can name."""

    def subjects(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, heads) of the subjects, zero-shot, look-alikes summed."""

    def styles(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, styles)."""

    def colours(self, pictures: Tensor) -> Tensor:
        """Probabilities (B, colours) of the background."""

    def image_text(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIPScore (B,) of each picture with its prompt: 2.5 max(cos, 0)."""

    def embed(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, D)."""

    def similarity(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Cosine (B,) of each picture's embedding with the other's, in [-1, 1]."""


class Opener(Protocol):
    """Loads a judge; ``detail`` is what followed the colon of its name."""

    def __call__(self, detail: str, vocabulary: Vocabulary | None, device: str) -> Judge: ...


JUDGES: Registry[Opener] = Registry("judge", group="loracomp.judges")


def open_judge(name: str = "glyph", vocabulary: Vocabulary | None = None, device: str = "cpu") -> Judge:
    """The judge called ``name``, a key of :data:`JUDGES` with details after a colon.

    Args:
        name: ``glyph``, ``glyph:FOLDER``, or ``openclip:MODEL/WEIGHTS``.
        vocabulary: What it shall name; glyph's judge brings its own.
        device: Where it runs.

    Raises:
        UnknownNameError: No such judge.
        ResourceError: Its weights or its package are missing.
    """
    for module in ("glyph_judge", "public_judge"):
        import_module(f"loracomp.evaluation.{module}")
    kind, _, detail = name.partition(":")
    return JUDGES[kind](detail, vocabulary, device)


def _position(kind: str, name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise UnknownNameError(kind, name, names)
    return names.index(name)
