"""How a LoRA is marked: three ways, each with what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from loracomp.errors import UnknownNameError, UsageError

Method = Literal["keyed", "authenlora", "aqualora"]
METHODS: dict[str, tuple[str, str]] = {
    "keyed": ("any key's code, beside an unmarked twin", ""),
    "authenlora": ("a mapper for all messages, learned with the style", "2511.21216"),
    "aqualora": ("a mapper for all messages, learned alone and added", "2405.11135"),
}


@dataclass(frozen=True)
class MarkSettings:
    """Everything that decides how a mark is trained.

    Attributes:
        method: One of :data:`METHODS`.
        steps: Optimizer steps of the marking.
        rank: Ranks that are added to the twin's (keyed), or rank of the mark (the others).
        lr: Peak learning rate.
        batch: Pictures in a step.
        mark: Weight of the shift.
        style: Weight of marked style pictures.
        zero: Weight of unmarked style pictures at the message of zeros.
        detect: Weight of reading the mark from what would be drawn.
        read: Pictures read per step at most.
        strengths: Least and largest strength at which a step is made.
        style_share: Share of samples that learn style at strength 1.
        crowded: Share of steps with other adapters added.
        truncated: Share of steps with ranks cut to a half or a quarter.
        partial: Share of samples that carry only a part of the mark and are to be led to all of it.
        floor: Weight of the shift at high noise, where 1 is that at low noise.
        zero_share: Share of messages of zeros (mapper).
        prior_share: Share of pictures of the prior (authenlora).
        pictures: Pictures drawn to learn from where there are none.
    """

    method: Method = "keyed"
    steps: int = 600
    rank: int = 4
    lr: float = 1e-3
    batch: int = 16
    mark: float = 1.0
    style: float = 0.3
    zero: float = 0.3
    detect: float = 0.05
    read: int = 4
    strengths: tuple[float, float] = (0.3, 1.3)
    style_share: float = 0.5
    crowded: float = 0.5
    truncated: float = 0.25
    partial: float = 0.0
    floor: float = 0.1
    zero_share: float = 0.1
    prior_share: float = 0.5
    pictures: int = 96

    def dump(self) -> dict[str, Any]:
        """For headers and checkpoints; holds nothing secret."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def mark_settings(values: Mapping[str, Any]) -> MarkSettings:
    """Settings from ``KEY=VALUE`` pairs that were parsed.

    Raises:
        UnknownNameError: No such setting or method.
        UsageError: A value of another type, or out of range.
    """
    start = MarkSettings()
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in MarkSettings.__dataclass_fields__:
            raise UnknownNameError("mark setting", key, MarkSettings.__dataclass_fields__)
        default = getattr(start, key)
        if isinstance(default, tuple):
            good = isinstance(value, (list, tuple)) and len(value) == 2 and all(_number(v) for v in value)
            value = tuple(map(float, value)) if good else value
        elif isinstance(default, str):
            good = isinstance(value, str)
        else:
            good = _number(value) and (isinstance(default, float) or isinstance(value, int)) and value >= 0
        if not good:
            raise UsageError(f"mark setting {key}={value!r}: write something like {default!r}")
        changes[key] = value
    made = replace(start, **changes)
    if made.method not in METHODS:
        raise UnknownNameError("marking method", made.method, METHODS)
    if min(made.steps, made.rank, made.batch) < 1 or not made.lr > 0:
        raise UsageError("mark settings steps, rank, batch and lr must be above 0")
    return made


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
