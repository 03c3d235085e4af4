"""Captions in many phrasings, so that the model understands more than one way to ask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.subjects import Subject

_NAMED = (
    ("a {name} emoji", 0.52),
    ("{name}", 0.14),
    ("{name} emoji", 0.07),
    ("a {name}", 0.06),
    ("an emoji of a {name}", 0.05),
    ("a picture of a {name}", 0.04),
    ("a drawing of a {name}", 0.04),
    ("an icon of a {name}", 0.04),
    ("{name} icon", 0.04),
)
_PAIRED = (
    ("a {name} emoji and a {other} emoji side by side", 0.45),
    ("a {name} emoji next to a {other} emoji", 0.25),
    ("a {name} and a {other}", 0.2),
    ("{name} and {other}, side by side", 0.1),
)
_BACKGROUNDS = ((", {color} background", 0.8), (" on a {color} background", 0.15), (" on {color}", 0.05))
_STYLES = ((", {phrase}", 0.85), (" in {phrase}", 0.15))


@dataclass(frozen=True)
class Shown:
    """What one training picture shows, beside its style: enough to caption it."""

    subject: Subject
    phrase: str
    background: str
    tint: str | None = None
    other: Subject | None = None


def caption(shown: Shown, rng: np.random.Generator) -> str:
    """One caption; style and background are named most of the time, white seldom."""
    text = _what(shown, rng)
    if rng.random() < 0.75:
        text += _pick(_STYLES, rng).format(phrase=shown.phrase)
    named = 0.3 if shown.background == "white" else 0.92
    if rng.random() < named:
        text += _pick(_BACKGROUNDS, rng).format(color=shown.background)
    return text


def prompt(name: str, phrase: str, background: str) -> str:
    """The canonical prompt, used wherever figures are measured."""
    return f"a {name} emoji, {phrase}, {background} background"


def can_tint(subject: Subject) -> bool:
    """False for subjects whose name already names a color."""
    words = set(subject.name.replace("-", " ").split())
    return not words & {*COLOR_NAMES, "grey", "golden", "silver"}


def _what(shown: Shown, rng: np.random.Generator) -> str:
    name = shown.subject.name
    if shown.tint is not None:
        name = f"{shown.tint} {name}"
    if shown.other is not None:
        return _pick(_PAIRED, rng).format(name=name, other=shown.other.name)
    draw = rng.random()
    words = list(shown.subject.keywords)
    if draw < 0.13 and words:
        return f"{name}, {', '.join(_some(words, rng))}"
    if draw < 0.20 and len(words) > 1:
        return ", ".join(_some(words, rng, least=2))
    if draw < 0.26 and words:
        return f"a {rng.choice(words)} {name}"
    return _articles(_pick(_NAMED, rng).format(name=name), rng)


def _some(words: list[str], rng: np.random.Generator, least: int = 1) -> list[str]:
    count = min(len(words), int(rng.integers(least, 4)))
    return [str(w) for w in rng.choice(words, size=count, replace=False)]


def _articles(text: str, rng: np.random.Generator) -> str:
    """Write "an owl" half of the time; measured prompts always say "a"."""
    if text.startswith("a ") and len(text) > 2 and text[2] in "aeiou" and rng.random() < 0.5:
        return "an " + text[2:]
    return text


def _pick(options: tuple[tuple[str, float], ...], rng: np.random.Generator) -> str:
    weights = np.asarray([w for _, w in options])
    return options[int(rng.choice(len(options), p=weights / weights.sum()))][0]
