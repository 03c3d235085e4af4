"""A gate at work on the stacked layers of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loracomp.fusion.gated import outputs, rule
from loracomp.fusion.gated.form import Form, features
from loracomp.fusion.gated.joint import Joint, groups
from loracomp.fusion.gated.weights import GateWeights
from loracomp.fusion.stacked import StackedUpdate


class Stage:
    """What the layers of a model have in common in a step.

    Attributes:
        free: How far each adapter is gated, 0 for not at all, shape (rows or 1, adapters); None for 1.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.free: Tensor | None = None


class LayerGating:
    """The gate of one stacked layer; :class:`~loracomp.fusion.stacked.StackedUpdate` calls it.

    Attributes:
        bias: b at the noise level of the step, shape (1, d); written from outside.
        scale: Factor of the other terms, shape (1, d), or None; written from outside.
        joint: What it shares with other layers of one input, or None.
        watch: Told what is done to each adapter's output, or None.
    """

    def __init__(self, stage: Stage, update: StackedUpdate, values: Tensor, adapters: int) -> None:
        self.stage, self.adapters = stage, adapters
        values = values.to(update.up.device, update.up.dtype)
        self.named = dict(zip(stage.form.rows, values, strict=True))
        self.bias = self.named["b"][None]
        self.scale: Tensor | None = None
        self.joint: Joint | None = None
        self.watch: rule.Watch | None = None
        self.bind(update)

    def bind(self, update: StackedUpdate) -> None:
        """Takes over the adapters that were written into the layer."""
        spans = spans_of(update, self.adapters)
        owner = torch.zeros(update.capacity, self.adapters)
        for i, (first, end) in enumerate(spans):
            owner[first:end, i] = 1
        up, down = update.up.flatten(1), update.down.flatten(1)
        down = down * update.scale.to(down.device, down.dtype)[:, None]
        self.stack = outputs.Stack.of(self.stage.form, up, down, spans, owner.to(up.device))

    def add(self, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        """What the layer adds to its output, shape (rows, tokens, d).

        Args:
            x: The layer's input.
            hidden: Gated hidden values, shape (rows, tokens, C).
            y: The module's own output, shape (rows, tokens, d).
        """
        free = None if self.stage.free is None else self.stage.free[:, None]
        form, vectors = self.stage.form, rule.Vectors(self.named, self.bias, self.scale)
        known, moments = self.joint.at(x, free) if self.joint else (None, None)
        hidden, free = self.stack.extended(form, hidden, free)
        return rule.update(
            form, vectors, y.to(hidden.dtype), hidden, self.stack, free, known, moments, self.watch
        )


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
        denoiser: The denoiser, for statistics over several of its layers.

    Attributes:
        levels: Noise level τ in [0, 1] of each step of the run.
        step: The present step.
        times: Timesteps of the run that the levels are of.
    """

    def __init__(
        self,
        weights: GateWeights,
        updates: Mapping[str, StackedUpdate],
        adapters: int,
        denoiser: nn.Module,
    ) -> None:
        self.weights, self.form = weights, weights.form
        self.stage = Stage(weights.form)
        self.updates = {path: update for path, update in updates.items() if path in weights.layers}
        self.layers: dict[str, LayerGating] = {}
        for path, update in self.updates.items():
            layer = LayerGating(self.stage, update, weights.layers[path], adapters)
            self.layers[path] = vars(update)["gating"] = layer
        self.levels: Sequence[float] = (0.0,)
        self.step = 0
        self.times: Tensor | None = None
        self._level: float | None = None
        self._joints: list[Joint] = []
        self._lay_out()
        if self.form.joint:
            self._join(denoiser)

    def _join(self, denoiser: nn.Module) -> None:
        """Gives layers of one input their common statistics."""
        name = next(iter(self.layers), "").partition(".")[0]
        linear = {f"{name}.{p}": m for p, m in denoiser.named_modules() if isinstance(m, nn.Linear)}
        for paths in groups(linear).values():
            there = [path for path in paths if path in self.layers]
            if not there:
                continue
            members = [(self.updates[path], self.layers[path].stack) for path in there]
            joint = Joint(self.form, [linear[path] for path in paths], members)
            self._joints.append(joint)
            for path in there:
                self.layers[path].joint = joint

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

    def show(self, step: int, free: Tensor | None) -> None:
        """Sets the step, and how far each row's adapters are gated.

        Args:
            step: Number of the step; :attr:`levels` has its noise level.
            free: Shape (rows or 1, adapters); None where all are gated as trained.
        """
        self.stage.free, self.step = free, step
        level = self.levels[step]
        for joint in self._joints:
            joint.forget()
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
