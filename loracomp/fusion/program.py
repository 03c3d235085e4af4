"""Gate programs: who speaks when, as data.

A composition method is a function from weights and a number of steps to a :class:`GateTable`. A
:class:`Program` names the method with its weights and options, so it can be written into an image
and read back. Nothing here knows about models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.registry import Registry


@dataclass(frozen=True)
class GateTable:
    """Gates over a run.

    Attributes:
        gates: Strength of each adapter, shape (steps, branches, adapters). A branch is one
            prediction of the denoiser; 0 silences an adapter, 1 is the strength it was trained at.
        mix: Share of each branch in the final prediction, shape (steps, branches), rows sum to 1.
    """

    gates: Tensor
    mix: Tensor

    @property
    def branches(self) -> int:
        """Predictions per step, computed as one batch."""
        return self.gates.shape[1]


Method = Callable[..., GateTable]
"""Weights of shape (adapters,), a step count and keyword options to a gate table."""

METHODS: Registry[Method] = Registry("method", group="loracomp.methods")


@dataclass(frozen=True)
class Program:
    """A method with its weights and options; equal programs give equal images.

    Attributes:
        method: A key of :data:`METHODS`.
        weights: One strength per adapter, in the order in which they are attached.
        options: Keyword arguments of the method.
    """

    method: str = "merge"
    weights: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def table(self, steps: int) -> GateTable:
        """The gates of a run of ``steps`` steps.

        Raises:
            UnknownNameError: No such method.
            UsageError: The method does not take one of the options.
        """
        weights = torch.tensor(self.weights, dtype=torch.float32)
        method = METHODS[self.method]
        try:
            return method(weights, steps, **self.options)
        except TypeError as error:
            raise UsageError(f"method {self.method}: {error}; see `loracomp methods`") from error

    def to_json(self) -> str:
        """The program as one line of JSON with sorted keys."""
        parts = {"method": self.method, "weights": list(self.weights), "options": dict(self.options)}
        return json.dumps(parts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that :meth:`to_json` wrote; raises :class:`UsageError` for anything else."""
        try:
            parts = json.loads(text)
            return cls(str(parts["method"]), tuple(map(float, parts["weights"])), dict(parts["options"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"not a gate program: {error}") from error
