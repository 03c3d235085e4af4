"""What a gate's formula consists of, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from loracomp.errors import UsageError

Terms = ("base", "lora", "cross", "time", "competition")
_PUBLISHED: dict[str, dict[str, Any]] = {
    "P": {"start": "normal"},
    "T": {"base": False, "strength": 0.512, "start": "normal", "global_rank": 2},
}


@dataclass(frozen=True)
class Form:
    """The terms of a gate; the default is ours, :meth:`published` gives AutoLoRA's two.

    Attributes:
        base: p ⊙ n_y, from the layer's own output.
        lora: q ⊙ n_i, from the adapter's output.
        cross: m ⊙ n_y ⊙ n_i, from both.
        time: Number of cosines of the noise level that shift and scale the logits (FiLM, arXiv:1709.07871);
            0 for none.
        competition: Whether the gate sees what share of all adapters' energy is the others', and how far the
            others point the same way.
        solo: Whether the gate fades to 1 where no other adapter speaks, so that one adapter alone is itself.
        joint: Whether projections of one input (q, k, v) share their statistics, as if they were one layer.
        global_rank: Rank of a further adapter made from all of them; 0 for none.
        strength: What v starts at.
        start: Whether p, q, m and b start at 0, or standard normal as published.
    """

    base: bool = True
    lora: bool = True
    cross: bool = True
    time: int = 0
    competition: bool = False
    solo: bool = False
    joint: bool = False
    global_rank: int = 0
    strength: float = 1.0
    start: Literal["zero", "normal"] = "zero"

    def __post_init__(self) -> None:
        if not 0 <= self.time <= 16 or not 0 <= self.global_rank <= 64:
            raise UsageError(f"a gate with {self.time} cosines and a global rank of {self.global_rank}")

    @classmethod
    def published(cls, version: Literal["P", "T"], **changes: Any) -> Form:
        """AutoLoRA's gate (arXiv:2508.02107): P is the released preview, T what its training code makes."""
        return cls(**{**_PUBLISHED[version], **changes})

    @classmethod
    def ours(cls, **changes: Any) -> Form:
        """All terms, identity for one adapter, starting as the plain sum."""
        return cls(**{"time": 3, "competition": True, "solo": True, **changes})

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of a layer's vectors, in the order in which they are stored; one number a channel each."""
        names = ["b", "v"]
        if self.base or self.cross:
            names += ["base_weight", "base_bias"]
        if self.lora or self.cross:
            names += ["lora_weight", "lora_bias"]
        chosen = (("p", self.base), ("q", self.lora), ("m", self.cross))
        names += [name for name, there in chosen if there]
        names += ["share", "cosine"] if self.competition else []
        return (*names, *(f"{kind}{k}" for kind in ("shift", "scale") for k in range(self.time)))

    def initial(self, width: int, generator: torch.Generator | None = None) -> Tensor:
        """A layer's vectors at the start, shape (rows, width)."""
        values = torch.zeros(len(self.rows), width)
        for place, name in enumerate(self.rows):
            if name in ("base_weight", "lora_weight"):
                values[place] = 1
            elif name == "v":
                values[place] = self.strength
            elif name in ("p", "q", "m", "b") and self.start == "normal":
                values[place] = torch.randn(width, generator=generator)
        return values

    def to_json(self) -> str:
        """The form as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Form:
        """What :meth:`to_json` wrote; raises ValueError for fields of another version."""
        if unknown := set(parts) - {field.name for field in fields(cls)}:
            raise ValueError(f"unknown terms {sorted(unknown)}")
        return cls(**parts)


def features(level: Tensor | float, count: int) -> Tensor:
    """cos(k π τ) for k = 1 … count of noise levels τ in [0, 1], shape (…, count)."""
    values = torch.as_tensor(level, dtype=torch.float32)
    return torch.cos(values[..., None] * math.pi * torch.arange(1, count + 1, device=values.device))
