"""Gate programs: who speaks when, as data.

A composition method is a function from weights and a number of steps to a :class:`GateTable`. A
:class:`Program` names the method with its weights and options, so it can be written into an image
and read back. Nothing here knows about models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
        always: Positions of the adapters that the method does not see: each stays at its weight in every
            step of every branch, as an accelerator has to.
    """

    method: str = "merge"
    weights: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    always: tuple[int, ...] = ()

    def table(self, steps: int) -> GateTable:
        """The gates of a run of ``steps`` steps.

        Raises:
            UnknownNameError: No such method.
            UsageError: The method does not take one of the options.
        """
        weights = torch.tensor(self.weights, dtype=torch.float32)
        method = METHODS[self.method]
        free = [index for index in range(len(weights)) if index not in self.always]
        if self.always and not free:
            return GateTable(weights.expand(steps, 1, -1).clone(), torch.ones(steps, 1))
        try:
            table = method(weights[free], steps, **self.options)
        except TypeError as error:
            raise UsageError(f"method {self.method}: {error}; see `loracomp methods`") from error
        return self._with_constant(table, weights, free) if self.always else table

    def _with_constant(self, table: GateTable, weights: Tensor, free: list[int]) -> GateTable:
        """The table of the adapters at ``free`` with a constant column for each of the others."""
        gates = weights.expand(*table.gates.shape[:2], -1).clone()
        gates[:, :, free] = table.gates
        return replace(table, gates=gates)

    def to_json(self) -> str:
        """The program as one line of JSON with sorted keys."""
        parts = {
            "method": self.method,
            "weights": list(self.weights),
            "options": dict(self.options),
            "always": list(self.always),
        }
        return json.dumps(parts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that :meth:`to_json` wrote; raises :class:`UsageError` for anything else."""
        try:
            parts = json.loads(text)
            weights, always = tuple(map(float, parts["weights"])), tuple(map(int, parts.get("always", ())))
            return cls(str(parts["method"]), weights, dict(parts["options"]), always)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"not a gate program: {error}") from error
