"""What ``benchmarks.methods`` tries: families of methods, and what is drawn for each within its budget."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loracomp.evaluation.cells import Cell
from loracomp.fusion import Profile, Program


@dataclass(frozen=True)
class Setting:
    """One way to compose.

    Attributes:
        family: A key of :data:`FAMILIES`.
        method: Composition method.
        subject: Weight of subjects.
        other: Weight of all other adapters.
        options: Of the method.
    """

    family: str
    method: str = "merge"
    subject: float = 1.0
    other: float = 1.0
    options: str = "{}"

    @property
    def label(self) -> str:
        """Name in the records."""
        return f"{self.family}|{self.method}|{self.subject:g}|{self.other:g}|{self.options}"

    def program(self, cell: Cell) -> Program:
        """The program for a cell."""
        kinds = [kind for kind, _ in cell.parts]
        weights = tuple(self.subject if kind == "subject" else self.other for kind in kinds)
        options = json.loads(self.options)
        if self.method == "roles":
            options["roles"] = kinds
        profiles: tuple[Profile, ...] = ()
        if self.family == PLACED:
            halves = iter(((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)) if kinds.count("subject") == 2 else ())
            profiles = tuple(
                Profile(box=next(halves, None)) if kind == "subject" else Profile() for kind in kinds
            )
        return Program(self.method, weights, options, profiles=profiles)


Draw = Callable[[random.Random], dict[str, Any]]


def _weights(source: random.Random) -> dict[str, Any]:
    return {"subject": _uniform(source, 0.6, 1.5), "other": _uniform(source, 0.6, 1.5)}


def _uniform(source: random.Random, low: float, high: float) -> float:
    return round(source.uniform(low, high), 2)


def _pair(source: random.Random, low: float, high: float, *, subject: bool, other: bool) -> list[float]:
    return [_uniform(source, low, high) if free else 1.0 for free in (subject, other)]


def _guided(source: random.Random) -> dict[str, Any]:
    return {"unconditional": _pair(source, 0.0, 1.0, subject=True, other=True)}


def _staged(source: random.Random) -> dict[str, Any]:
    return {
        "handover": _uniform(source, 0.1, 0.6),
        "early": [_uniform(source, 1.0, 1.6), _uniform(source, 0.0, 1.0)],
        "late": [_uniform(source, 0.4, 1.0), _uniform(source, 1.0, 1.6)],
    }


def _routed(source: random.Random) -> dict[str, Any]:
    return {part: [_uniform(source, 0.5, 1.6), _uniform(source, 0.2, 1.6)] for part in ("down", "mid", "up")}


def _lion(source: random.Random) -> dict[str, Any]:
    return {
        "consistency": _uniform(source, 0, 1),
        "conflict": _uniform(source, 0, 0.4),
        "removal": _uniform(source, 0.3, 1),
    }


def _switch(source: random.Random) -> dict[str, Any]:
    return {"period": _uniform(source, 0.03, 0.3)}


def _aware(source: random.Random) -> dict[str, Any]:
    return _switch(source) | {"tail": _uniform(source, 0, 0.4)}


def _cmlora(source: random.Random) -> dict[str, Any]:
    return {
        "switch_at": _uniform(source, 0.2, 1),
        "decay": _uniform(source, 0, 0.8),
        "staleness": source.choice([0.04, 0.125, 0.25]),
    }


def _gated(source: random.Random) -> dict[str, Any]:
    return {"amount": _uniform(source, 0.2, 1.0)}


def _nothing(source: random.Random) -> dict[str, Any]:
    return {}


PLACED = "placed"
"""Plain merge with each of two subjects in its half of the image."""
FAMILIES: dict[str, tuple[str, tuple[Draw, ...]]] = {
    "merge": ("merge", (_nothing,)),
    PLACED: ("merge", (_nothing,)),
    "switch": ("switch", (_switch,)),
    "composite": ("composite", (_nothing,)),
    "w-switch": ("w-switch", (_aware,)),
    "w-composite": ("w-composite", (_nothing,)),
    "cmlora": ("cmlora", (_cmlora,)),
    "lion": ("lion", (_lion,)),
    "gated": ("gated", (_gated,)),
    "guided": ("roles", (_guided,)),
    "staged": ("roles", (_staged,)),
    "routed": ("roles", (_routed,)),
    "all roles": ("roles", (_guided, _staged, _routed)),
}
"""Method, and what draws its options, by family; weights are drawn in every one."""


def settings(family: str, budget: int) -> list[Setting]:
    """The untuned setting and ``budget`` - 1 drawn ones, the same in every run."""
    method, draws = FAMILIES[family]
    source, found = random.Random(f"methods {family}"), [Setting(family, method)]
    while len(found) < budget:
        weights = _weights(source)
        options = {name: value for draw in draws for name, value in draw(source).items()}
        found.append(Setting(family, method, **weights, options=json.dumps(options)))
    return found
