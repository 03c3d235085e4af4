"""Losses of marked LoRAs: keyed carriers beside a twin, AuthenLoRA's dual objective, AquaLoRA's prior."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.training import losses
from loracomp.training.objective import Batch, Objective
from loracomp.training.order import Draw, generator_for
from loracomp.training.watermark.codec_loss import SHARPNESS, Latents
from loracomp.training.watermark.dial import Dial
from loracomp.training.watermark.settings import MarkSettings
from loracomp.training.watermark.shift import (
    balanced_messages,
    clean_of,
    late,
    modulation,
    native_target,
    snr_weights,
)
from loracomp.watermark.codec import Codec
from loracomp.watermark.keys import Key

FRESH = 25
"""Steps after which bases of cut ranks are computed anew."""


@dataclass(eq=False)
class Marked(Objective):
    """What all three have in common.

    Attributes:
        codec: Writes and reads marks.
        settings: How.
        seed: Of the run.
        dial: Turns the layers; set when they are on.
    """

    codec: Codec = field(kw_only=True)
    settings: MarkSettings = field(kw_only=True)
    seed: int = field(kw_only=True)
    dial: Dial | None = None

    def loss(self, draw: Draw) -> Tensor:
        """See :meth:`Objective.loss`; all further draws depend on the seed and this batch alone."""
        digest = hashlib.sha256(draw.level.numpy().tobytes() + draw.noise.numpy().tobytes()[:64]).hexdigest()
        self.source = generator_for(self.seed, "mark", digest)
        return self.errors(self.batch(draw)).mean()

    def coefficients(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """a and b of each sample, and its time in [0, 1]; all (batch,)."""
        if self.prediction == "flow":
            sigmas = losses.shift_sigmas(losses.logit_normal(batch.level), self.shift)
            return 1 - sigmas, sigmas, sigmas
        steps = torch.where(batch.terminal, self.levels - 1, (batch.level * self.levels).long())
        alphas = self.alphas[steps]
        return alphas.sqrt(), (1 - alphas).sqrt(), steps.float() / self.levels

    def given(self, times: Tensor) -> Tensor:
        """What the denoiser is told at these times."""
        steps = times * self.levels
        return steps if self.prediction == "flow" else steps.round().long()

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(count,) on the device."""
        return self._moved(low + (high - low) * torch.rand(count, generator=self.source))


@dataclass(eq=False)
class Keyed(Marked):
    """One key's mark in an adapter beside its unmarked twin (our own).

    The marked adapter at strength s has to see, at latents that carry s δ, what the twin at strength s sees
    without, plus s δ. So the mark scales with strength, and the style stays the twin's.

    Attributes:
        key: The key.
        factors: The twin's, by parameter name; set when the layers are on.
        latents: The base's autoencoder, for reading what is drawn.
        shadows: How many other adapters may be added; half of them may be marked themselves.
    """

    key: Key = field(kw_only=True)
    factors: dict[str, Tensor] = field(default_factory=dict)
    latents_of: Latents | None = None
    shadows: int = 0
    steps: int = 0

    def errors(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.errors`."""
        dial, settings, count = self._ready(), self.settings, len(batch.clean)
        a, b, times = self.coefficients(batch)
        delta = self.codec.residual(self.key).to(self.device)
        strength = self.uniform(count, *settings.strengths)
        styled = self.uniform(count) < settings.style_share
        arrived = torch.where(self.uniform(count) < settings.partial, self.uniform(count), torch.ones_like(a))
        crowded = self._choose_shadows()
        if not crowded:
            strength = torch.where(styled, torch.ones_like(strength), strength)
        noisy = losses.spread(a, batch.clean) * batch.clean + losses.spread(b, batch.clean) * batch.noise
        shifted = noisy + losses.spread(a * strength * arrived, noisy) * delta
        dial.strength, dial.kept = strength, self._rank()
        with self._precision():
            states = self._text(batch)
            with torch.no_grad(), dial.twin(self.factors):
                plain = self._predict(noisy, self.given(times), states).float()
            made = self._predict(shifted, self.given(times), states).float()
        dial.strength, dial.kept, dial.weights = None, 0, (0.0,) * self.shadows
        wanted = clean_of(plain, noisy, a, b, self.prediction) + losses.spread(strength, noisy) * delta
        found = clean_of(made, shifted, a, b, self.prediction)
        weights = late(times, floor=settings.floor) * snr_weights(a, b)
        out = settings.mark * losses.weighted_errors(found, wanted, weights)
        if not crowded:
            target = native_target(batch.clean + delta, batch.noise, a, b, self.prediction)
            whole = styled & (arrived == 1)
            out = out + settings.style * losses.weighted_errors(made, target, whole.float())
        return out + settings.detect * self._detect(found, times)

    def _ready(self) -> Dial:
        if self.dial is None:
            raise RuntimeError("layers are not on yet")
        self.steps += 1
        if self.steps % FRESH == 1:
            self.dial.forget()
        return self.dial

    def _rank(self) -> int:
        """Rank to cut to in this step: all, a half or a quarter."""
        if self.dial is None or float(torch.rand((), generator=self.source)) >= self.settings.truncated:
            return 0
        rank = next(iter(self.dial.injected.tensors.values())).shape[0]
        share = (2, 4)[int(torch.randint(2, (), generator=self.source))]
        return max(1, rank // share)

    def _choose_shadows(self) -> bool:
        """Weights of other adapters in this step; whether there are any."""
        if self.dial is None or not self.shadows:
            return False
        weights = [0.0] * self.shadows
        crowded = float(torch.rand((), generator=self.source)) < self.settings.crowded
        if crowded:
            number = min(self.shadows, 1 + int(torch.randint(3, (), generator=self.source)))
            for index in torch.randperm(self.shadows, generator=self.source)[:number].tolist():
                weights[index] = 0.3 + 0.7 * float(torch.rand((), generator=self.source))
        self.dial.weights = tuple(weights)
        return crowded

    def _detect(self, clean: Tensor, times: Tensor) -> Tensor:
        """How badly the extractor reads the key from what would be drawn; a scalar."""
        chosen = (times < 0.3).nonzero()[: self.settings.read, 0]
        if self.latents_of is None or not self.settings.detect or not len(chosen):
            return torch.zeros((), device=self.device)
        pictures = self.latents_of.decode(clean[chosen])
        read = self.codec.extractor(pictures.clamp(0, 1))
        carriers = self.key.carriers(self.codec.shape.dimensions).float().to(self.device)
        logits = SHARPNESS * self.key.bits**0.5 * read @ carriers.T
        return F.softplus(-logits * self._moved(2.0 * self.key.message - 1)).mean()


@dataclass(eq=False)
class Mapped(Marked):
    """Messages through a mapper between down and up: AuthenLoRA (arXiv:2511.21216), as far as it is known,
    and, without a style, AquaLoRA's prior-preserving fine-tuning.

    Attributes:
        embeddings: The mapper (bits, rank), trained with the layers; set when they are on.
        silent: Gives a context in which the base is alone; set when the layers are on.
        priors: Of each picture in the data, whether it is a picture of the prior.
    """

    embeddings: nn.Parameter | None = None
    silent: Callable[[], AbstractContextManager[Any]] = nullcontext
    priors: Tensor | None = None

    def batch(self, draw: Draw) -> Batch:
        """See :meth:`Objective.batch`; remembers which pictures are of the prior."""
        if self.priors is not None:
            self.prior = self._moved(self.priors[draw.pictures])
        return super().batch(draw)

    def errors(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.errors`: style pictures learn style with mark, or without at the message of
        zeros; prior pictures learn the mark alone.
        """
        if self.dial is None or self.embeddings is None:
            raise RuntimeError("layers are not on yet")
        settings, count = self.settings, len(batch.clean)
        a, b, times = self.coefficients(batch)
        messages = balanced_messages(count, self.codec.shape.bits, self.source)
        share = settings.zero_share if self.codec.shape.carriers == "zero" else 0.0
        zero = torch.rand(count, generator=self.source) < share
        messages = self._moved(torch.where(zero[:, None], torch.zeros_like(messages), messages))
        prior = (
            self.prior if self.priors is not None else torch.ones(count, dtype=torch.bool, device=self.device)
        )
        with torch.no_grad():
            delta = self.codec.residuals(messages)
            delta = delta * losses.spread(self._moved((~zero).float()), delta)
        noisy = losses.spread(a, batch.clean) * batch.clean + losses.spread(b, batch.clean) * batch.noise
        shifted = noisy + losses.spread(a, noisy) * delta
        self.dial.scale = modulation(messages, self.embeddings)
        with self._precision():
            states = self._text(batch)
            with torch.no_grad(), self.silent():
                plain = self._predict(noisy, self.given(times), states).float()
            made = self._predict(shifted, self.given(times), states).float()
        self.dial.scale = None
        target = native_target(batch.clean + delta, batch.noise, a, b, self.prediction)
        styled = losses.weighted_errors(
            made, target, torch.where(self._moved(zero), settings.zero, settings.style)
        )
        moved = clean_of(made, shifted, a, b, self.prediction) - clean_of(plain, noisy, a, b, self.prediction)
        shifts = losses.weighted_errors(moved, delta, snr_weights(a, b))
        return torch.where(prior, settings.mark * shifts, styled)
