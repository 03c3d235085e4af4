"""Ways from noise to picture as few-step samplers walk them: pure functions of tensors.

A place on a way is its share of the schedule: 1 is pure noise, 0 the clean latents. Latents x, noise
and velocities are (batch, channels, height, width), shares (batch,). On both kinds of way a step from
share s to share s' is linear in the velocity v at s, so the velocity that would have led from one
latent to another follows from the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loracomp.bases import Prediction
from loracomp.training.losses import interpolate, shift_sigmas, spread

LARGEST_WEIGHT = 5.0
"""Bound on how much more than its squared error a noise prediction's loss may count."""


class Path(Protocol):
    """One kind of way."""

    def timesteps(self, shares: Tensor) -> Tensor:
        """What the denoiser is told at these places."""

    def noised(self, clean: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """Clean latents moved to these places."""

    def velocity(self, predicted: Tensor, noisy: Tensor, shares: Tensor) -> Tensor:
        """The denoiser's output as a velocity."""

    def step(self, noisy: Tensor, velocity: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """The deterministic step from one share to a smaller one."""

    def implied(self, noisy: Tensor, landed: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """The velocity whose step leads from ``noisy`` to ``landed``."""

    def weights(self, shares: Tensor) -> Tensor:
        """What a squared error of the velocity counts at these places, in (0, 1]."""


@dataclass(frozen=True, eq=False)
class Arc:
    """Variance-preserving diffusion, on which DDIM's step (arXiv:2010.02502, eq. 12, η = 0) is a rotation.

    With φ = atan2(√(1 - ᾱ), √ᾱ) and v = √ᾱ ε - √(1 - ᾱ) x₀, the step is
    x' = cos(φ - φ') x - sin(φ - φ') v (arXiv:2202.00512, appendix D), which has no division.

    Attributes:
        angles: φ of the clean end and of every timestep, shape (N + 1,).
        prediction: ``epsilon`` or ``v_prediction``.
    """

    angles: Tensor
    prediction: Prediction

    @classmethod
    def of(cls, alphas: Tensor, final: float, prediction: Prediction) -> Arc:
        """From the scheduler's ᾱ, shape (N,), and the ᾱ that its last step goes to."""
        table = torch.cat([torch.tensor([final], dtype=torch.float64), alphas.double().cpu()])
        angles = torch.atan2((1 - table).clamp_min(0).sqrt(), table.sqrt())
        return cls(angles.to(alphas.device, torch.float32), prediction)

    def timesteps(self, shares: Tensor) -> Tensor:
        """Trailing timesteps round(N s) - 1 (arXiv:2305.08891, §3.3)."""
        return self._places(shares) - 1

    def noised(self, clean: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """See :class:`Path`."""
        angle = spread(self.angles[self._places(shares)], clean)
        return angle.cos() * clean + angle.sin() * noise

    def velocity(self, predicted: Tensor, noisy: Tensor, shares: Tensor) -> Tensor:
        """See :class:`Path`; from noise, v = (ε - √(1 - ᾱ) x) / √ᾱ."""
        if self.prediction == "v_prediction":
            return predicted
        angle = spread(self.angles[self._places(shares)], noisy)
        return (predicted - angle.sin() * noisy) / angle.cos()

    def step(self, noisy: Tensor, velocity: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """See :class:`Path`."""
        turn = self._turn(now, then, noisy)
        return turn.cos() * noisy - turn.sin() * velocity

    def implied(self, noisy: Tensor, landed: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """See :class:`Path`; bounded by the velocities of the steps between, however short the way."""
        turn = self._turn(now, then, noisy)
        return (turn.cos() * noisy - landed) / turn.sin()

    def weights(self, shares: Tensor) -> Tensor:
        """1 for v, which is the SNR + 1 weighting of x₀ (arXiv:2202.00512, §4).

        A noise prediction has that of min(1 + 1/SNR, 5) times its own error, finite at zero SNR.
        """
        if self.prediction == "v_prediction":
            return torch.ones_like(shares)
        return (LARGEST_WEIGHT * self.angles[self._places(shares)].cos().square()).clamp_max(1)

    def _places(self, shares: Tensor) -> Tensor:
        return (shares.double() * (len(self.angles) - 1)).round().long()

    def _turn(self, now: Tensor, then: Tensor, like: Tensor) -> Tensor:
        return spread(self.angles[self._places(now)] - self.angles[self._places(then)], like)


@dataclass(frozen=True)
class Line:
    """Rectified flow (arXiv:2209.03003), on which Euler's step is x' = x + (σ' - σ) v.

    Attributes:
        levels: Number of timesteps N.
        shift: Of the scheduler; see :func:`loracomp.training.losses.shift_sigmas`.
    """

    levels: int
    shift: float

    def timesteps(self, shares: Tensor) -> Tensor:
        """N σ."""
        return self._sigmas(shares) * self.levels

    def noised(self, clean: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """See :class:`Path`."""
        return interpolate(clean, noise, self._sigmas(shares))

    def velocity(self, predicted: Tensor, noisy: Tensor, shares: Tensor) -> Tensor:
        """See :class:`Path`; the denoiser predicts it."""
        return predicted

    def step(self, noisy: Tensor, velocity: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """See :class:`Path`."""
        return noisy + spread(self._sigmas(then) - self._sigmas(now), noisy) * velocity

    def implied(self, noisy: Tensor, landed: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """See :class:`Path`."""
        return (landed - noisy) / spread(self._sigmas(then) - self._sigmas(now), noisy)

    def weights(self, shares: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(shares)

    def _sigmas(self, shares: Tensor) -> Tensor:
        return shift_sigmas(shares, self.shift)


def segments(level: Tensor, fewest: int, most: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of runs of ``fewest`` to ``most`` steps, picked by uniform numbers.

    Args:
        level: (batch,) in (0, 1); every step of every such run has the same share of the interval.
        fewest: Steps of the shortest run.
        most: Steps of the longest run.
        first: (batch,) bool: take the first step of the run, the one from pure noise.

    Returns:
        Shares of the schedule where the steps begin and end, (batch,) float32 each.
    """
    table = torch.tensor([(k, n) for n in range(fewest, most + 1) for k in range(n)], dtype=torch.float64)
    table = table.to(level.device)
    done, steps = table[(level.double() * len(table)).long().clamp_max(len(table) - 1)].unbind(1)
    done = torch.where(first, 0.0, done)
    return (1 - done / steps).float(), (1 - (done + 1) / steps).float()


def guided(plain: Tensor, told: Tensor, scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598, eq. 6), its deviation set back (arXiv:2305.08891, §3.4).

    Args:
        plain: Prediction with the empty caption.
        told: Prediction with the caption.
        scale: Guidance scale; 1 is ``told``.
        rescale: Share in [0, 1] of the result whose deviation per sample becomes that of ``told``.
    """
    result = plain + scale * (told - plain)
    if not rescale:
        return result
    axes = tuple(range(1, told.ndim))
    ratio = told.std(axes, keepdim=True) / result.std(axes, keepdim=True).clamp_min(1e-8)
    return result * (rescale * ratio + 1 - rescale)
