"""Targets and weights against diffusers' schedulers and the papers' formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loracomp.training import losses


def _schedule() -> torch.Tensor:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    return scheduler.alphas_cumprod


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(5, 4, 6, 6, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([0, 1, 400, 998, 999])


def test_noising_and_velocity_agree_with_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    latents, noise, timesteps = _batch()
    alphas = scheduler.alphas_cumprod
    noisy = losses.diffuse(latents, noise, timesteps, alphas)
    velocity = losses.velocity(latents, noise, timesteps, alphas)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps))


def test_velocity_and_noisy_sample_give_back_the_latents() -> None:
    latents, noise, timesteps = _batch()
    alphas = _schedule()
    noisy = losses.diffuse(latents, noise, timesteps, alphas)
    velocity = losses.velocity(latents, noise, timesteps, alphas)
    signal = losses.spread(alphas[timesteps], latents)
    torch.testing.assert_close(signal.sqrt() * noisy - (1 - signal).sqrt() * velocity, latents)


def test_flow_agrees_with_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise, _ = _batch()
    timesteps = scheduler.timesteps[torch.tensor([0, 10, 500, 900, 999])]
    sigmas = timesteps / 1000
    noisy = losses.interpolate(latents, noise, sigmas)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, timesteps, noise))
    step = 0.25
    nearer = losses.interpolate(latents, noise, sigmas - step)
    torch.testing.assert_close(noisy - step * losses.flow(latents, noise), nearer)


@given(st.floats(0, 1), st.floats(0.5, 8))
def test_shift_keeps_the_ends_and_inverts(sigma: float, shift: float) -> None:
    value = torch.tensor([sigma], dtype=torch.float64)
    moved = losses.shift_sigmas(value, shift)
    assert 0 <= float(moved) <= 1
    torch.testing.assert_close(losses.shift_sigmas(moved, 1 / shift), value)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_stratified_numbers_fill_every_interval_once(count: int, seed: int) -> None:
    numbers = losses.stratified(count, torch.Generator().manual_seed(seed))
    assert sorted((numbers * count).floor().clamp_max(count - 1).int().tolist()) == list(range(count))


def test_logit_normal_has_its_quantiles() -> None:
    uniform = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    logits = torch.logit(losses.logit_normal(uniform))
    assert abs(float(logits.mean())) < 1e-6
    assert float(logits.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction: str) -> None:
    alphas = _schedule()
    timesteps = torch.tensor([0, 100, 500, 999])
    weights = losses.min_snr_weights(timesteps, alphas, 5.0, prediction)  # type: ignore[arg-type]
    for weight, timestep in zip(weights.tolist(), timesteps.tolist(), strict=True):
        alpha = float(alphas[timestep])
        ratio = alpha / (1 - alpha)
        if prediction == "epsilon":
            expected = 1.0 if ratio == 0 else min(ratio, 5.0) / ratio
        else:
            expected = min(ratio, 5.0) / (ratio + 1)
        assert weight == pytest.approx(expected, rel=1e-5)


def test_weighted_error_is_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, target = (torch.randn(3, 2, 4, 4, generator=generator).double() for _ in range(2))
    weights = torch.tensor([0.5, 0.0, 2.0])
    parts = [
        float(w) * float(((p - t) ** 2).mean()) for w, p, t in zip(weights, predicted, target, strict=True)
    ]
    assert float(losses.weighted_error(predicted, target, weights)) == pytest.approx(sum(parts) / 3, rel=1e-5)
    plain = float(losses.weighted_error(predicted, target))
    assert plain == pytest.approx(float(((predicted - target) ** 2).mean()), rel=1e-5)
