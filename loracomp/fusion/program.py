"""Gate programs: who speaks when, where and how strongly, as data.

A composition method is a function from weights and a number of steps to a :class:`GateTable`. A
:class:`Program` names the method with its weights and options, and says per adapter what modifies them, so
it can be written into an image and read back. Nothing here knows about models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.fusion.curves import Curve
from loracomp.fusion.plan import CachePlan
from loracomp.registry import Registry


@dataclass(frozen=True)
class GateTable:
    """Gates over a run.

    Attributes:
        gates: Strength of each adapter, shape (steps, branches, adapters). A branch is one
            prediction of the denoiser; 0 silences an adapter, 1 is the strength it was trained at.
        mix: Share of each branch in the final prediction, shape (steps, branches), rows sum to 1.
        unconditional: Table of the unconditional half of guidance, with branches of its own; None where both
            halves are alike.
        blocks: Factors by name of a block (:mod:`loracomp.fusion.blocks`), shape (adapters,) or (steps,
            adapters); a layer takes the product over the mappings of what its most specific name says.
        ranks: How many of its leading ranks each adapter uses; 0, or none given, stands for all.
        refresh: Branches whose cached features are renewed in a step, shape (steps, branches), bool; None
            leaves it to the cache plan.
    """

    gates: Tensor
    mix: Tensor
    unconditional: GateTable | None = None
    blocks: tuple[Mapping[str, Tensor], ...] = ()
    ranks: tuple[int, ...] = ()
    refresh: Tensor | None = None

    @property
    def branches(self) -> int:
        """Predictions per step, computed as one batch."""
        return self.gates.shape[1]


Method = Callable[..., GateTable]
"""Weights of shape (adapters,), a step count and keyword options to a gate table."""

METHODS: Registry[Method] = Registry("method", group="loracomp.methods")

_MANY = 1000
"""Steps of a run in which every adapter that a method lets speak has its turn."""


@dataclass(frozen=True)
class Profile:
    """What modifies one adapter's gates besides method and weight; the default modifies nothing.

    Attributes:
        curve: Factor over the run.
        blocks: Factor by block name (:mod:`loracomp.fusion.blocks`); 1 where no name fits.
        unconditional: Factor in the unconditional half of guidance.
        text: Factor in the text encoders.
        ranks: Use only so many leading ranks; 0 for all.
        box: Where in the image it acts, (left, top, right, bottom) as shares of width and height.
    """

    curve: Curve | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)
    unconditional: float = 1.0
    text: float = 1.0
    ranks: int = 0
    box: tuple[float, float, float, float] | None = None

    def to_parts(self) -> dict[str, Any]:
        """Plain data for JSON, without what is at its default."""
        parts = {"blocks": dict(self.blocks), "unconditional": self.unconditional, "text": self.text}
        parts |= {"ranks": self.ranks, "curve": self.curve.to_parts() if self.curve else None}
        parts |= {"box": list(self.box) if self.box else None}
        default = {"blocks": {}, "unconditional": 1.0, "text": 1.0, "ranks": 0, "curve": None, "box": None}
        return {name: value for name, value in parts.items() if value != default[name]}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Profile:
        """What :meth:`to_parts` gave."""
        curve = Curve.from_parts(parts["curve"]) if parts.get("curve") else None
        blocks = {str(name): float(value) for name, value in parts.get("blocks", {}).items()}
        unconditional, text = float(parts.get("unconditional", 1)), float(parts.get("text", 1))
        box = tuple(map(float, parts["box"])) if parts.get("box") else None
        if box is not None and len(box) != 4:
            raise ValueError(f"a box of {len(box)} numbers")
        return cls(curve, blocks, unconditional, text, int(parts.get("ranks", 0)), box)


@dataclass(frozen=True)
class Program:
    """A method with its weights and options; equal programs give equal images.

    Attributes:
        method: A key of :data:`METHODS`.
        weights: One strength per adapter, in the order in which they are attached.
        options: Keyword arguments of the method.
        always: Positions of the adapters that the method does not see: each stays at its weight in every
            step of every branch, as an accelerator has to.
        profiles: One per adapter, or none at all.
        cache: Which features are reused between steps; None computes every block in every step.
    """

    method: str = "merge"
    weights: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    always: tuple[int, ...] = ()
    profiles: tuple[Profile, ...] = ()
    cache: CachePlan | None = None

    def table(self, steps: int, sigmas: Tensor | None = None) -> GateTable:
        """The gates of a run of ``steps`` steps at noise levels ``sigmas``, shape (steps,).

        Raises:
            UnknownNameError: No such method.
            UsageError: The method does not take one of the options, or a curve needs ``sigmas``.
        """
        weights = torch.tensor(self.weights, dtype=torch.float32)
        method = METHODS[self.method]
        free = [index for index in range(len(weights)) if index not in self.always]
        if self.always and not free:
            table = GateTable(weights.expand(steps, 1, -1).clone(), torch.ones(steps, 1))
        else:
            try:
                table = method(weights[free], steps, **self.options)
            except TypeError as error:
                raise UsageError(f"method {self.method}: {error}; see `loracomp methods`") from error
            if self.always:
                table = _with_constant(table, weights, free)
        return _profiled(table, self.profiles, steps, sigmas) if self.profiles else table

    def text_weights(self, *, unconditional: bool = False) -> Tensor:
        """Strength of each adapter in the text encoders, shape (branches, adapters).

        A prompt is encoded before the first step, so an adapter acts at its weight in the text of every
        branch in which it speaks at some step, and not at all in the others.

        Args:
            unconditional: For the negative prompt, in the branches of the unconditional half.
        """
        table = replace(self, profiles=()).table(_MANY)
        if unconditional and table.unconditional is not None:
            table = table.unconditional
        weights = (table.gates != 0).any(0) * torch.tensor(self.weights)
        for index, profile in enumerate(self.profiles):
            silent = profile.curve is not None and not any(value for _, value in profile.curve.points)
            absent = unconditional and profile.unconditional == 0
            weights[:, index] *= 0.0 if silent or absent else profile.text
        return weights

    def to_json(self) -> str:
        """The program as one line of JSON with sorted keys."""
        parts = {
            "method": self.method,
            "weights": list(self.weights),
            "options": dict(self.options),
            "always": list(self.always),
            "profiles": [profile.to_parts() for profile in self.profiles],
            "cache": self.cache.to_parts() if self.cache else None,
        }
        return json.dumps(parts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that :meth:`to_json` wrote; raises :class:`UsageError` for anything else."""
        try:
            parts = json.loads(text)
            weights, always = tuple(map(float, parts["weights"])), tuple(map(int, parts.get("always", ())))
            profiles = tuple(Profile.from_parts(part) for part in parts.get("profiles", ()))
            cache = CachePlan.from_parts(parts["cache"]) if parts.get("cache") else None
            return cls(str(parts["method"]), weights, dict(parts["options"]), always, profiles, cache)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"not a gate program: {error}") from error


def _with_constant(table: GateTable, weights: Tensor, free: list[int]) -> GateTable:
    """The table of the adapters at ``free`` with a constant column for each of the others."""
    gates = weights.expand(*table.gates.shape[:2], -1).clone()
    gates[:, :, free] = table.gates
    half = table.unconditional
    blocks = tuple(
        {name: _spread(factors, free, len(weights)) for name, factors in mapping.items()}
        for mapping in table.blocks
    )
    chosen = dict(zip(free, table.ranks, strict=False))
    return replace(
        table,
        gates=gates,
        ranks=tuple(chosen.get(index, 0) for index in range(len(weights))) if chosen else (),
        unconditional=_with_constant(half, weights, free) if half else None,
        blocks=blocks,
    )


def _spread(factors: Tensor, free: list[int], count: int) -> Tensor:
    """Factors (…, free) as (…, adapters), 1 for the others."""
    spread = torch.ones(*factors.shape[:-1], count)
    spread[..., free] = factors
    return spread


def _profiled(
    table: GateTable, profiles: tuple[Profile, ...], steps: int, sigmas: Tensor | None
) -> GateTable:
    """The table with each adapter's profile applied."""
    ones = torch.ones(steps)
    curves = torch.stack([p.curve.values(steps, sigmas) if p.curve else ones for p in profiles], dim=1)
    factors = torch.tensor([profile.unconditional for profile in profiles])
    half = table.unconditional
    if half is not None or bool((factors != 1).any()):
        other = half or replace(table, unconditional=None)
        half = replace(other, gates=other.gates * curves[:, None] * factors)
    blocks = tuple(
        {
            name: _spread(torch.tensor([float(value)]), [index], len(profiles))
            for name, value in profile.blocks.items()
        }
        for index, profile in enumerate(profiles)
        if profile.blocks
    )
    ranks = tuple(profile.ranks for profile in profiles)
    return replace(
        table,
        gates=table.gates * curves[:, None],
        unconditional=half,
        blocks=(*table.blocks, *blocks),
        ranks=ranks if any(ranks) else table.ranks,
    )
