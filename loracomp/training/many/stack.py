"""The factors of all adapters at work, as rows of one table, and the layers that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.lowrank import LowRank
from loracomp.training.config import TrainConfig
from loracomp.training.inject import check_learned
from loracomp.training.many.places import Place
from loracomp.training.many.products import add_convolution, add_linear


class Stack:
    """Seats for adapters: each has one row in the tables of values, gradients and moments.

    A seat's row holds the factors of every layer, padded with zeros to the largest rank and, where
    its adapter leaves a layer alone, nothing but zeros. Down and up of padding are both zero, so
    that the gradients of both are zero too, and so are their moments: padding stays zero.

    Args:
        places: Layers, the union of what the adapters change.
        seats: Number of adapters at once.
        rank: Largest rank.
        device: Where the base is.
        scaled: Whether some adapter has a scale other than 1.
    """

    def __init__(
        self, places: Sequence[Place], seats: int, rank: int, device: torch.device, scaled: bool
    ) -> None:
        self.places, self.seats, self.rank = tuple(places), seats, rank
        self.sizes = [sum(a * b for a, b in place.factor_shapes(rank)) for place in places]
        size = sum(self.sizes)
        self.values, self.grads, self.first, self.second = (
            torch.zeros(seats, size, device=device) for _ in range(4)
        )
        self.scales = torch.ones(seats, 1, 1, device=device) if scaled else None
        self.on = True
        self._handles: list[Any] = []
        self._leaves: list[Tensor] = []
        self._gradients: list[Tensor] = []

    @property
    def row_bytes(self) -> int:
        """Bytes of one seat in the tables of values, gradients and two moments."""
        return 4 * sum(self.sizes) * self.values.element_size()

    def install(self) -> None:
        """Lets the base's layers add the update of each sample's adapter."""
        start = 0
        for place in self.places:
            leaves = []
            for rows, columns in place.factor_shapes(self.rank):
                end = start + rows * columns
                leaf = self.values[:, start:end].view(self.seats, rows, columns).detach().requires_grad_()
                leaves.append(leaf)
                self._gradients.append(self.grads[:, start:end].view(self.seats, rows, columns))
                start = end
            self._leaves += leaves
            hook = self._hook(place, leaves[0], leaves[1])
            self._handles.append(place.module.register_forward_hook(hook))

    def _hook(self, place: Place, down: Tensor, up: Tensor) -> Callable[..., Tensor | None]:
        def add(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if not self.on:
                return None
            if place.kernel is None:
                return add_linear(inputs[0], out, down, up, self.scales)
            return add_convolution(inputs[0], out, down, up, self.scales, place.kernel)

        return add

    def remove(self) -> None:
        """Takes the updates off the base's layers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaves.clear()
        self._gradients.clear()

    def collect(self, loss: Tensor) -> None:
        """Adds the gradients of a loss to the table of gradients."""
        grads = torch.autograd.grad(loss, self._leaves, allow_unused=True)
        for place, grad in zip(self._gradients, grads, strict=True):
            if grad is not None:
                place.add_(grad)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The base alone, for as long as the context lasts."""
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def fresh(self, config: TrainConfig, paths: frozenset[str]) -> Tensor:
        """The values (numbers,) that an adapter of the layers ``paths`` begins with."""
        parts = [
            place.fresh(config, self.rank) if place.path in paths else torch.zeros(size)
            for place, size in zip(self.places, self.sizes, strict=True)
        ]
        return torch.cat(parts)

    def begin(self, number: int, values: Tensor) -> None:
        """Writes the values that a seat begins with; its moments are zero."""
        self.clear(number)
        self.values[number] = values.to(self.values.device)

    def scale(self, number: int, config: TrainConfig) -> None:
        """Sets the scale of a seat's updates."""
        if self.scales is not None:
            self.scales[number] = config.scale_alpha / config.rank

    def clear(self, number: int) -> None:
        """Empties a seat: from now on it adds nothing and learns nothing."""
        for table in (self.values, self.grads, self.first, self.second):
            table[number] = 0

    def updates(self, values: Tensor, config: TrainConfig, paths: frozenset[str]) -> dict[str, LowRank]:
        """The adapter that a row of values (numbers,) on the CPU stands for.

        Raises:
            TrainingError: A value is not finite, or nothing was learned.
        """
        table: dict[str, Tensor] = {}
        for place, numbers in zip(self.places, values.split(self.sizes), strict=True):
            if place.path in paths:
                down, up = place.factors(numbers, config.rank, self.rank)
                table |= {f"{place.path}.down": down, f"{place.path}.up": up}
        check_learned(table)
        alpha = config.scale_alpha
        return {path: LowRank(table[f"{path}.down"], table[f"{path}.up"], alpha) for path in sorted(paths)}
