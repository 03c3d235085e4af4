"""How much memory a run of many adapters takes, counted before it starts, and how many fit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.errors import ResourceError
from loracomp.training.many.cohort import Cohort
from loracomp.training.many.draws import Draws
from loracomp.training.many.places import Place
from loracomp.training.many.stack import Stack
from loracomp.training.objective import Objective

SHARE = 0.85
"""Part of the free memory that is planned with; the rest is for what kernels borrow."""

ENOUGH = {"cuda": 128, "cpu": 16}
"""Adapters at once beyond which a device gets little faster."""


@dataclass(frozen=True)
class Budget:
    """Bytes of a run.

    Attributes:
        base: All parts of the pipeline.
        data: Latents and text states of all members.
        states: One seat's values, gradients and two moments.
        activations: What one seat's samples leave behind for the backward pass.
    """

    base: int
    data: int
    states: int
    activations: int

    def total(self, seats: int) -> int:
        """Bytes with so many adapters at once."""
        return self.base + self.data + seats * (self.states + self.activations)

    def seats(self, free: int, members: int, device: str) -> int:
        """The number of adapters at once that fit into ``free`` bytes beside base and data, up to enough.

        Raises:
            ResourceError: Not even one fits.
        """
        fitting = int(free * SHARE) // (self.states + self.activations)
        if fitting < 1:
            need = (self.states + self.activations) / 2**20
            raise ResourceError(
                f"one adapter takes {need:.0f} MiB and {free / 2**20:.0f} MiB are free; lower batch or rank, "
                f"or set gradient_checkpointing=true"
            )
        return min(fitting, ENOUGH.get(device, 1), members)

    def facts(self, seats: int) -> dict[str, int]:
        """The count as a table for reports."""
        return {
            "base": self.base,
            "data": self.data,
            "states": seats * self.states,
            "activations": seats * self.activations,
            "total": self.total(seats),
        }


def count(pipe: Any, cohort: Cohort, places: tuple[Place, ...], objective: Objective) -> Budget:
    """Counts what a run takes, by running one seat's forward pass and weighing what autograd keeps."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    weights = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    stack = Stack(places, 1, cohort.rank, objective.device, cohort.scaled)
    own = [stack.values, stack.grads, stack.first, stack.second]
    return Budget(
        base=_bytes(weights),
        data=_bytes([objective.latents, *objective.states.values()]),
        states=stack.row_bytes,
        activations=_activations(stack, cohort, objective, {_place(t) for t in (*weights, *own)}),
    )


def _activations(stack: Stack, cohort: Cohort, objective: Objective, known: set[int]) -> int:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in known:
            kept[_place(tensor)] = tensor
        return tensor

    draws = Draws({}, objective.latent_shape, cohort.width, pinned=False)
    batch = objective.batch(draws.parts([None], 1)[0])
    stack.install()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective.errors(batch)
        total = _bytes(kept.values())
        del loss
    finally:
        stack.remove()
    return total


def _bytes(tensors: Iterable[Tensor]) -> int:
    stores = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(stores.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device; a quarter of a gigabyte where it does not say."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**28
