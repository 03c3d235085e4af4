"""What the denoiser is asked for and how its errors are weighed: pure functions on tensors.

Shapes: latents x₀, noise ε and targets are (batch, channels, height, width); timesteps (batch,) are
integers in [0, N); ``alphas`` (N,) are the scheduler's cumulative ᾱ; sigmas (batch,) lie in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from loracomp.bases import Prediction


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Per-sample ``values`` (batch,) with trailing axes so that they multiply ``like``."""
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def diffuse(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """√ᾱ x₀ + √(1 - ᾱ) ε (DDPM, arXiv:2006.11239, eq. 4)."""
    signal = spread(alphas[timesteps], latents)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor) -> Tensor:
    """√ᾱ ε - √(1 - ᾱ) x₀ (progressive distillation, arXiv:2202.00512, §4)."""
    signal = spread(alphas[timesteps], latents)
    return signal.sqrt() * noise - (1 - signal).sqrt() * latents


def interpolate(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """(1 - σ) x₀ + σ ε, the straight path of rectified flow (arXiv:2209.03003)."""
    share = spread(sigmas, latents)
    return (1 - share) * latents + share * noise


def flow(latents: Tensor, noise: Tensor) -> Tensor:
    """ε - x₀, the direction of the straight path."""
    return noise - latents


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards 1 for large pictures (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """``count`` uniform numbers in (0, 1), one in each of ``count`` equal intervals, in random order.

    Lower variance of the loss than independent draws at the same expectation.
    """
    inside = torch.rand(count, generator=generator)
    order = torch.randperm(count, generator=generator)
    return ((order + inside) / count).clamp(1e-6, 1 - 1e-6)


def logit_normal(uniform: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) turned into logit-normal ones (SD3, arXiv:2403.03206, §3.1)."""
    return torch.sigmoid(torch.special.ndtri(uniform.double())).to(uniform.dtype)


def snr(alphas: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1 - ᾱ) of each timestep, in [0, ∞)."""
    return alphas / (1 - alphas).clamp_min(1e-12)


def min_snr_weights(timesteps: Tensor, alphas: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Loss weights (batch,) of min-SNR-γ (arXiv:2303.09556, §3.4) for ε or v targets.

    min(SNR, γ) / SNR for ε, with its limit 1 at zero SNR; min(SNR, γ) / (SNR + 1) for v.
    """
    ratio = snr(alphas.double())[timesteps]
    capped = ratio.clamp_max(gamma)
    if prediction == "epsilon":
        return torch.where(ratio > 0, capped / ratio.clamp_min(1e-12), torch.ones_like(ratio)).float()
    return (capped / (ratio + 1)).float()


def weighted_errors(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample in fp32, times its weight: (batch,)."""
    per_sample = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return per_sample if weights is None else per_sample * weights.to(per_sample)


def weighted_error(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of :func:`weighted_errors` over the batch: a scalar."""
    return weighted_errors(predicted, target, weights).mean()
