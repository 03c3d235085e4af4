"""The training loss of one batch: data, draws and denoiser brought together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from loracomp.pipeline import denoiser_of
from loracomp.training import losses
from loracomp.training.cache import Encoded
from loracomp.training.order import Draw
from loracomp.training.wiring import States, encode_captions, prediction_of, wiring_of


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss is computed from, on the pipeline's device.

    Attributes:
        clean: Latents of the pictures, (batch, channels, height, width).
        noise: Standard normal, of the same shape.
        level: (batch,) noise levels as uniform numbers in (0, 1).
        terminal: (batch,) bool: moved to the last timestep.
        rows: (batch,) indices of the captions, on the CPU.
        states: Text states with the captions' leading axis, and ``side`` in pixels; where the text
            encoders train, ``side`` alone.
    """

    clean: Tensor
    noise: Tensor
    level: Tensor
    terminal: Tensor
    rows: Tensor
    states: Mapping[str, Tensor]


@dataclass(eq=False)
class Objective:
    """Loss of batches on one pipeline.

    Attributes:
        pipe: The pipeline, not adapted yet.
        data: Its training data; latents and states are moved to the pipeline's device.
        gamma: Min-SNR γ, or None for equal weights.
        autocast: Whether to compute in bf16.
        resolution: Side of the pictures in pixels.
    """

    pipe: Any
    data: Encoded
    gamma: float | None
    autocast: bool
    resolution: int

    def __post_init__(self) -> None:
        self.device = torch.device(self.pipe.device)
        self.model = cast(Any, denoiser_of(self.pipe)[1])
        self.dtype: torch.dtype = self.model.dtype  # before the fp32 layers of the adapter are on it
        self.wiring = wiring_of(self.pipe)
        self.prediction = prediction_of(self.pipe)
        self.latents = self.data.latents.to(self.device)
        self.states = {name: state.to(self.device) for name, state in self.data.states.items()}
        scheduler = self.pipe.scheduler
        self.levels = scheduler.config.num_train_timesteps
        moves = scheduler.config.get("use_dynamic_shifting", False)  # then shift is for drawing only
        self.shift = 1.0 if moves else float(scheduler.config.get("shift", 1.0))
        if self.prediction != "flow":
            self.alphas = scheduler.alphas_cumprod.to(self.device, torch.float32)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one latent."""
        return tuple(self.latents.shape[2:])

    def loss(self, draw: Draw) -> Tensor:
        """The loss of the batch that ``draw`` describes: a scalar, with gradients."""
        return self.errors(self.batch(draw)).mean()

    def batch(self, draw: Draw) -> Batch:
        """The data that ``draw`` chose, on the pipeline's device."""
        places = self.data.latent_of[draw.pictures]
        empty = torch.tensor(len(self.data.captions) - 1)
        rows = torch.where(draw.uncaptioned, empty, self.data.caption_of[draw.pictures])
        return Batch(
            clean=self.latents[self._moved(places), self._moved(draw.mirrored.long())],
            noise=self._moved(draw.noise),
            level=self._moved(draw.level),
            terminal=self._moved(draw.terminal),
            rows=rows,
            states=self._encoded(rows),
        )

    def errors(self, batch: Batch) -> Tensor:
        """The loss of each sample: (batch,), with gradients."""
        with self._precision():
            states = self._text(batch)
            if self.prediction == "flow":
                return self._flow(batch, states)
            timesteps = (batch.level * self.levels).long().masked_fill(batch.terminal, self.levels - 1)
            return self._diffusion(batch.clean, batch.noise, timesteps, states)

    def _moved(self, value: Tensor) -> Tensor:
        return value.to(self.device, non_blocking=self.device.type == "cuda")

    def _diffusion(self, clean: Tensor, noise: Tensor, timesteps: Tensor, states: States) -> Tensor:
        noisy = losses.diffuse(clean, noise, timesteps, self.alphas)
        target = noise
        if self.prediction == "v_prediction":
            target = losses.velocity(clean, noise, timesteps, self.alphas)
        weights = None
        if self.gamma is not None:
            weights = losses.min_snr_weights(timesteps, self.alphas, self.gamma, self.prediction)
        return losses.weighted_errors(self._predict(noisy, timesteps, states), target, weights)

    def _flow(self, batch: Batch, states: States) -> Tensor:
        sigmas = losses.shift_sigmas(losses.logit_normal(batch.level), self.shift)
        noisy = losses.interpolate(batch.clean, batch.noise, sigmas)
        predicted = self._predict(noisy, sigmas * self.levels, states)
        return losses.weighted_errors(predicted, losses.flow(batch.clean, batch.noise))

    def _predict(self, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        return self.wiring.predict(self.model, noisy.to(self.dtype), timesteps, states)

    def _encoded(self, rows: Tensor) -> dict[str, Tensor]:
        """Sizes, and the text states of the captions ``rows`` where they were computed beforehand."""
        side = torch.full(rows.shape, float(self.resolution), device=self.device)
        picked = self._moved(rows)
        return {"side": side} | {name: state[picked] for name, state in self.states.items()}

    def _text(self, batch: Batch) -> States:
        if self.states:
            return batch.states
        texts = [self.data.captions[row] for row in batch.rows.tolist()]
        return {**batch.states, **encode_captions(self.pipe, texts, self.device)}

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
