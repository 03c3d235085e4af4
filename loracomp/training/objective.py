"""The training loss of one batch: data, draws and denoiser brought together."""

from __future__ import annotations

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
        clean = self.latents[draw.pictures.to(self.device), draw.mirrored.long().to(self.device)]
        noise, level = draw.noise.to(self.device), draw.level.to(self.device)
        with self._precision():
            states = self._text(draw)
            if self.prediction == "flow":
                return self._flow(clean, noise, level, states)
            terminal = draw.terminal.to(self.device)
            timesteps = torch.where(terminal, self.levels - 1, (level * self.levels).long())
            return self._diffusion(clean, noise, timesteps, states)

    def _diffusion(self, clean: Tensor, noise: Tensor, timesteps: Tensor, states: States) -> Tensor:
        noisy = losses.diffuse(clean, noise, timesteps, self.alphas)
        target = noise
        if self.prediction == "v_prediction":
            target = losses.velocity(clean, noise, timesteps, self.alphas)
        weights = None
        if self.gamma is not None:
            weights = losses.min_snr_weights(timesteps, self.alphas, self.gamma, self.prediction)
        return losses.weighted_error(self._predict(noisy, timesteps, states), target, weights)

    def _flow(self, clean: Tensor, noise: Tensor, level: Tensor, states: States) -> Tensor:
        sigmas = losses.shift_sigmas(losses.logit_normal(level), self.shift)
        noisy = losses.interpolate(clean, noise, sigmas)
        predicted = self._predict(noisy, sigmas * self.levels, states)
        return losses.weighted_error(predicted, losses.flow(clean, noise))

    def _predict(self, noisy: Tensor, timesteps: Tensor, states: States) -> Tensor:
        return self.wiring.predict(self.model, noisy.to(self.dtype), timesteps, states)

    def _text(self, draw: Draw) -> dict[str, Tensor]:
        empty = torch.tensor(len(self.data.captions) - 1)
        rows = torch.where(draw.uncaptioned, empty, self.data.caption_of[draw.pictures])
        side = torch.full(rows.shape, float(self.resolution), device=self.device)
        if self.states:
            picked = rows.to(self.device)
            return {"side": side} | {name: state[picked] for name, state in self.states.items()}
        texts = [self.data.captions[row] for row in rows.tolist()]
        return {"side": side} | encode_captions(self.pipe, texts, self.device)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
