"""A step's work as a CUDA graph: a gate is many small kernels, and launching them takes most of a step.

The work has one shape for each number of adapters, and a recording of each; they share their memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loracomp.training.gate.objective import Objective, Placed

WARM_UP = 2


@dataclass(frozen=True)
class Work:
    """Errors of a batch, and the gradient of its loss in the gate's vectors.

    Attributes:
        objective: Computes the loss.
        hinge: See :class:`loracomp.training.gate.settings.Settings`.
        margin: See there.
    """

    objective: Objective
    hinge: float
    margin: float

    def __call__(self, batch: Placed) -> Tensor:
        """Errors of the samples, shape (S,); the gradient replaces the one before in place."""
        values = self.objective.vectors.values
        if values.grad is None:
            values.grad = torch.zeros_like(values)
        values.grad.zero_()
        loss, errors = self.objective.loss(batch, self.hinge, self.margin)
        loss.backward()
        return errors


class Recorded:
    """The same, replayed.

    Args:
        work: What is recorded.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.pool = torch.cuda.graph_pool_handle()
        self.known: dict[tuple[int, ...], tuple[Placed, torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, batch: Placed) -> Tensor:
        """As :meth:`Work.__call__`; the errors are valid until the next call."""
        key = (*batch.chosen.shape, batch.solo)
        if key not in self.known:
            self.known[key] = self._record(batch)
        own, graph, errors = self.known[key]
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                getattr(own, name).copy_(value, non_blocking=True)
        graph.replay()
        return errors

    def _record(self, batch: Placed) -> tuple[Placed, torch.cuda.CUDAGraph, Tensor]:
        tensors: dict[str, Any] = {
            name: part.clone() for name, part in vars(batch).items() if isinstance(part, Tensor)
        }
        own = replace(batch, **tensors)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.work(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            errors = self.work(own)
        return own, graph, errors
