"""A gate at work on the stacked layers of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from loracomp.fusion.gated import rule
from loracomp.fusion.gated.form import Form, features
from loracomp.fusion.gated.weights import GateWeights
from loracomp.fusion.stacked import StackedUpdate

Watch = list[tuple[Tensor, ...]]


class Stage:
    """What the layers of a model have in common in a step.

    Attributes:
        free: How far each adapter is gated, 0 for not at all, shape (rows or 1, adapters).
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.free = torch.ones(1, 1)


class LayerGating:
    """The gate of one stacked layer; :class:`~loracomp.fusion.stacked.StackedUpdate` calls it.

    Attributes:
        bias: b at the noise level of the step, shape (1, d); written from outside.
        scale: Factor of the other terms, shape (1, d), or None; written from outside.
        watch: Collects the factors of each call, by adapter, while it is a list.
    """

    def __init__(self, stage: Stage, update: StackedUpdate, values: Tensor, adapters: int) -> None:
        self.stage, self.adapters = stage, adapters
        values = values.to(update.up.device, update.up.dtype)
        self.named = dict(zip(stage.form.rows, values, strict=True))
        self.bias = self.named["b"][None]
        self.scale: Tensor | None = None
        self.watch: Watch | None = None
        self.bind(update)

    def bind(self, update: StackedUpdate) -> None:
        """Takes over the adapters that were written into the layer."""
        self.spans = spans_of(update, self.adapters)
        self.up = update.up.flatten(1)
        owner = torch.zeros(update.capacity, self.adapters)
        for i, (first, end) in enumerate(self.spans):
            owner[first:end, i] = 1
        self.grams = rule.Grams.of(self.up, owner.to(self.up.device))

    def add(self, hidden: Tensor, y: Tensor) -> Tensor:
        """What the layer adds to its output, shape (rows, tokens, d).

        Args:
            hidden: Gated hidden values, shape (rows, tokens, C).
            y: The module's own output, shape (rows, tokens, d).
        """
        free = self.stage.free[:, None]
        vectors = rule.Vectors(self.named, self.bias, self.scale)
        known = rule.numbers(hidden, self.grams, free)
        seen: list[Tensor] | None = None if self.watch is None else []
        result = rule.update(
            self.stage.form, vectors, y.to(hidden.dtype), hidden, self.up, self.spans, known, free, watch=seen
        )
        if self.watch is not None and seen is not None:
            self.watch.append(tuple(seen))
        return result


def spans_of(update: StackedUpdate, adapters: int) -> list[tuple[int, int]]:
    """Each adapter's ranks in a stacked layer, (0, 0) for none."""
    found = []
    for i in range(adapters):
        places = ((update.owner == i) & (update.scale != 0)).nonzero()[:, 0]
        found.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0))
    return found


class Gating:
    """A gate on all stacked layers of a model.

    Args:
        weights: The gate; layers that it does not know stay plain sums.
        updates: The denoiser's stacked layers by path.
        adapters: Number of adapters.
    """

    def __init__(self, weights: GateWeights, updates: Mapping[str, StackedUpdate], adapters: int) -> None:
        self.weights, self.form = weights, weights.form
        self.stage = Stage(weights.form)
        self.updates = {path: update for path, update in updates.items() if path in weights.layers}
        self.layers: dict[str, LayerGating] = {}
        for path, update in self.updates.items():
            layer = LayerGating(self.stage, update, weights.layers[path], adapters)
            self.layers[path] = vars(update)["gating"] = layer
        self._level: float | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        """All layers' biases and scales side by side, so that a step is two products and two copies."""
        if not self.form.time or not self.layers:
            return
        stored = torch.cat([self.weights.layers[path] for path in self.layers], dim=1)
        first = len(self.form.rows) - 2 * self.form.time
        like = next(iter(self.layers.values())).bias
        self._bias = stored[self.form.rows.index("b")].to(like.device)
        self._films = stored[first:].unflatten(0, (2, self.form.time)).to(like.device)
        self._shown = torch.zeros(2, 1, stored.shape[1], device=like.device, dtype=like.dtype)
        widths = [layer.bias.shape[1] for layer in self.layers.values()]
        for layer, bias, scale in zip(
            self.layers.values(), *(part.split(widths, 1) for part in self._shown), strict=True
        ):
            layer.bias, layer.scale = bias, scale

    def show(self, level: float, free: Tensor) -> None:
        """Sets the noise level of a step, and how far each row's adapters are gated.

        Args:
            level: Noise level τ in [0, 1].
            free: Shape (rows or 1, adapters).
        """
        self.stage.free = free
        if not self.form.time or level == self._level or not self.layers:
            return
        phases = features(level, self.form.time).to(self._films)
        both = torch.einsum("k,skd->sd", phases, self._films)
        self._shown.copy_((both + torch.stack([self._bias, torch.ones_like(self._bias)]))[:, None])
        self._level = level

    def leave(self) -> None:
        """Takes the gate off its layers."""
        for update in self.updates.values():
            vars(update)["gating"] = None


def levels_of(scheduler: Any) -> list[float]:
    """Noise level τ in [0, 1] of each step: its timestep over the number of timesteps in training."""
    times = scheduler.timesteps.detach().double().cpu() / scheduler.config.num_train_timesteps
    return [float(level) for level in times.clamp(0, 1)]
