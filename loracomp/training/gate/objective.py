"""The loss of a gate: what is asked of the denoiser with several gated adapters on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from loracomp.fusion.gated import rule
from loracomp.fusion.gated.form import Form, features
from loracomp.pipeline import denoiser_of
from loracomp.training import losses
from loracomp.training.gate.bank import Bench, Turn
from loracomp.training.gate.draws import OTHER, SOLO, WHOLE, Batch
from loracomp.training.gate.material import Pictures
from loracomp.training.wiring import encode_captions, prediction_of, wiring_of


@dataclass(frozen=True)
class Noise:
    """The continuous part of a batch: noise levels in (0, 1), shape (S,), and noise like the latents."""

    level: Tensor
    values: Tensor


@dataclass(frozen=True)
class Placed:
    """A batch with its noise on the device; see :class:`Batch` and :class:`Noise`.

    Attributes:
        words: Row of each sample's caption among the distinct ones.
        solo: How many samples, the first ones, ask for one adapter alone.
    """

    chosen: Tensor
    picture: Tensor
    words: Tensor
    kind: Tensor
    asked: Tensor
    level: Tensor
    values: Tensor
    solo: int


class GateVectors(nn.Module):
    """All layers' vectors side by side, shape (rows, sum of widths), as one parameter.

    Args:
        form: The gate's form.
        widths: Output channels of each layer by path.
        seed: Of the start.
    """

    def __init__(self, form: Form, widths: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.form, self.widths = form, dict(widths)
        generator = torch.Generator().manual_seed(seed)
        self.values = nn.Parameter(form.initial(sum(widths.values()), generator))

    def at(self, level: Tensor, dtype: torch.dtype) -> dict[str, rule.Vectors]:
        """The gates of all layers at each sample's noise level, shape (S,)."""
        form, widths = self.form, list(self.widths.values())
        whole = rule.Vectors.of(form, self.values, features(level, form.time) if form.time else None)
        parts = {name: row.to(dtype).split(widths) for name, row in whole.named.items()}
        biases = whole.bias.to(dtype).split(widths, dim=-1)
        scales = whole.scale.to(dtype).split(widths, dim=-1) if whole.scale is not None else None
        return {
            path: rule.Vectors(
                {name: row[place] for name, row in parts.items()},
                biases[place],
                scales[place] if scales else None,
            )
            for place, path in enumerate(self.widths)
        }


class Objective:
    """Losses of batches.

    Args:
        pipe: The pipeline, its denoiser in the precision to compute in.
        pictures: The scenes; latents and captions go to the pipeline's device.
        bench: The adapters on the denoiser.
        vectors: The gate.
    """

    def __init__(self, pipe: Any, pictures: Pictures, bench: Bench, vectors: GateVectors) -> None:
        self.model = cast(Any, denoiser_of(pipe)[1])
        self.device = torch.device(pipe.device)
        self.dtype: torch.dtype = self.model.dtype
        self.wiring, self.prediction = wiring_of(pipe), prediction_of(pipe)
        self.bench, self.vectors = bench, vectors
        self.latents = pictures.latents.to(self.device)
        self.words, table = _distinct(pictures)
        with torch.no_grad():
            found = [
                encode_captions(pipe, table[i : i + 256], self.device) for i in range(0, len(table), 256)
            ]
        self.states = {name: torch.cat([part[name] for part in found]).to(self.dtype) for name in found[0]}
        scheduler = pipe.scheduler
        self.levels = int(scheduler.config.num_train_timesteps)
        if self.prediction != "flow":
            self.alphas = scheduler.alphas_cumprod.to(self.device, torch.float32)

    def placed(self, batch: Batch, noise: Noise) -> Placed:
        """The batch on the device."""
        parts = (batch.chosen, batch.picture, self.words[batch.words], batch.kind, batch.asked)
        chosen, picture, words, kind, asked = (part.to(self.device) for part in parts)
        level, values = noise.level.to(self.device), noise.values.to(self.device)
        solo = int((batch.kind == SOLO).sum())
        return Placed(chosen, picture, words, kind, asked, level, values, solo)

    def errors(self, batch: Placed, gated: bool = True) -> Tensor:
        """Mean squared error of each sample, shape (S,).

        Args:
            batch: The samples.
            gated: Whether the gate acts; otherwise the adapters are summed.
        """
        clean = self.latents[batch.picture].float()
        times, noisy, target = self._diffused(clean, batch)
        states = {name: state[batch.words] for name, state in self.states.items()}
        states["side"] = torch.full((len(times),), float(8 * clean.shape[-1]), device=self.device)
        if batch.solo:
            own = batch.chosen[: batch.solo].gather(1, batch.asked[: batch.solo, None])
            some = {name: state[: batch.solo] for name, state in states.items()}
            with torch.no_grad():
                alone = self._predict(Turn(own, None), noisy[: batch.solo], times[: batch.solo], some).float()
                target = torch.cat([alone, target[batch.solo :]])
        gates = self.vectors.at(times / self.levels, self.dtype) if gated else None
        found = self._predict(Turn(batch.chosen, gates), noisy, times, states)
        return losses.weighted_errors(found, target)

    def loss(self, batch: Placed, hinge: float, margin: float) -> tuple[Tensor, Tensor]:
        """The mean loss, and each sample's error without gradient."""
        errors = self.errors(batch)
        wrong = hinge * (margin - errors).clamp_min(0)
        return torch.where(batch.kind == OTHER, wrong, errors).mean(), errors.detach()

    def _diffused(self, clean: Tensor, batch: Placed) -> tuple[Tensor, Tensor, Tensor]:
        level, values = batch.level, batch.values
        if self.prediction == "flow":
            return (
                level * self.levels,
                losses.interpolate(clean, values, level),
                losses.flow(clean, values),
            )
        times = (level * self.levels).long().clamp_max(self.levels - 1)
        noisy = losses.diffuse(clean, values, times, self.alphas)
        if self.prediction == "epsilon":
            return times, noisy, values
        return times, noisy, losses.velocity(clean, values, times, self.alphas)

    def _predict(self, turn: Turn, noisy: Tensor, times: Tensor, states: Mapping[str, Tensor]) -> Tensor:
        self.bench.turn = turn
        try:
            return self.wiring.predict(self.model, noisy.to(self.dtype), times, states)
        finally:
            self.bench.turn = None


def _distinct(pictures: Pictures) -> tuple[Tensor, list[str]]:
    """Place of each caption among the distinct ones, the empty one last, and those."""
    table = [*dict.fromkeys(pictures.captions), ""]
    place = {text: number for number, text in enumerate(table)}
    return torch.tensor([place[text] for text in (*pictures.captions, "")]), table


def kinds(batch: Placed, errors: Tensor) -> dict[str, float]:
    """Mean error of each kind of samples that there is."""
    names = {WHOLE: "whole", SOLO: "solo", OTHER: "other"}
    host, kind = errors.float().cpu(), batch.kind.cpu()
    return {name: float(host[kind == k].mean()) for k, name in names.items() if bool((kind == k).any())}
