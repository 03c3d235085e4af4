"""Looks: transformations of pictures with a name, parameters, and words for them.

A look is data (family and parameters), so that a plan can be written, read and compared. Recolorings
take and give straight-alpha pictures; filters take those and background colors and give finished
pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from loracomp.training.corpus.filters import FILTERS
from loracomp.training.corpus.phrases import PHRASES
from loracomp.training.corpus.recolor import RECOLORINGS
from loracomp.training.glyph.augment import as_float
from loracomp.training.glyph.filters import over

Stage = Literal["recolor", "filter"]


@dataclass(frozen=True)
class Look:
    """One transformation.

    Attributes:
        stage: Whether it changes the drawing's colors, or the finished picture.
        family: Name of the function that does it.
        settings: Its keyword arguments, sorted.
    """

    stage: Stage
    family: str
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, stage: Stage, family: str, **settings: Any) -> Look:
        """A look from keyword arguments."""
        return cls(stage, family, tuple(sorted(settings.items())))

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"stage": self.stage, "family": self.family, **dict(self.settings)}

    @property
    def phrases(self) -> tuple[str, ...]:
        """Ways to say it after "drawn": the first is the plainest."""
        return tuple(text.format(**dict(self.settings)) for text in PHRASES[self.family])

    def _function(self) -> Callable[..., Tensor]:
        table: Mapping[str, Callable[..., Tensor]] = RECOLORINGS if self.stage == "recolor" else FILTERS
        return table[self.family]


def apply(looks: tuple[Look, ...], pictures: Tensor, back: Tensor) -> Tensor:
    """Finished pictures (B, 3, 128, 128) in [0, 1].

    Args:
        looks: At most one of each stage.
        pictures: (B, 128, 128, 4) straight-alpha bytes.
        back: (B, 3) background colors in [0, 1].
    """
    rgba = as_float(pictures)
    for look in looks:
        if look.stage == "recolor":
            rgba = look._function()(rgba, **dict(look.settings))
    for look in looks:
        if look.stage == "filter":
            return look._function()(rgba, back, **dict(look.settings)).clamp(0, 1)
    return over(rgba, back).clamp(0, 1)
