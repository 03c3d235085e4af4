"""The work of a step as a CUDA graph: recorded once, replayed without a launch per kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loracomp.training.objective import Batch

Work = Callable[[Sequence[Batch], Tensor, Tensor], tuple[Tensor, Tensor]]
WARM_UP = 3
FIELDS = ("clean", "noise", "level", "terminal")


class Captured:
    """Work on batches that always have the shapes of the first ones.

    Args:
        work: From batches, rows for the optimiser and weights of the samples to losses and norms. It is
            called a few times on empty seats, where it changes nothing.
        batches: Batches of the right shapes on the device.
        rows: The optimiser's rows.
        weights: Weights of the samples.
    """

    def __init__(self, work: Work, batches: Sequence[Batch], rows: Tensor, weights: Tensor) -> None:
        self.batches = [
            replace(
                batch,
                states={name: state.clone() for name, state in batch.states.items()},
                **{name: getattr(batch, name).clone() for name in FIELDS},
            )
            for batch in batches
        ]
        self.rows, self.weights = rows.clone(), weights.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work(self.batches, self.rows, self.weights)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = work(self.batches, self.rows, self.weights)

    def __call__(self, batches: Sequence[Batch], rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and norms of the seats, valid until the next call."""
        for own, batch in zip(self.batches, batches, strict=True):
            for name in FIELDS:
                getattr(own, name).copy_(getattr(batch, name), non_blocking=True)
            for name, state in batch.states.items():
                own.states[name].copy_(state, non_blocking=True)
        self.rows.copy_(rows)
        self.weights.copy_(weights)
        self.graph.replay()
        return self.results
