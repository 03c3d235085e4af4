"""Runs made for measuring: the clean image that is predicted in each step, and the finished pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.pipeline.composing import compose

Progress = Callable[[int, int], None]
SCENES = ("{words}", "a house, {words}", "a tree, {words}", "a red apple, {words}")
"""Prompts to measure an adapter on: its own words alone, and beside other things."""


@dataclass(frozen=True)
class Setting:
    """What adapters are measured on.

    Attributes:
        scenes: Prompts; ``{words}`` stands for the adapter's trigger words, or its name where it has none.
        seeds: Pictures per prompt, with seeds from ``first``.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.
        first: Seed of the first picture.
    """

    scenes: tuple[str, ...] = SCENES
    seeds: int = 2
    steps: int = 10
    guidance: float = 2.0
    first: int = 0

    def prompts(self, adapter: Adapter) -> tuple[str, ...]:
        """The prompts for an adapter."""
        words = ", ".join(adapter.trigger_words) or adapter.name
        return tuple(scene.replace("{words}", words) for scene in self.scenes)


@dataclass(frozen=True)
class Sample:
    """A run of several pictures.

    Attributes:
        clean: Predicted clean latents, shape (steps, pictures, channels, height, width), float32, on the CPU.
        pictures: Shape (pictures, 3, height, width) in [0, 1].
    """

    clean: Tensor
    pictures: Tensor


def sample(
    pipe: Any, setting: Setting, prompts: Sequence[str], adapters: Sequence[Adapter], weight: float
) -> Sample:
    """Draws every prompt with every seed by a deterministic scheduler.

    Args:
        pipe: The pipeline.
        setting: Seeds, steps and guidance.
        prompts: What to draw.
        adapters: Composed by merge; none, or a weight of 0, is the base alone.
        weight: Strength of each adapter.
    """
    used = adapters if weight else ()
    clean, pictures = [], []
    for prompt in prompts:
        with _noting(pipe) as seen:
            drawn = compose(
                pipe,
                prompt,
                used,
                "merge",
                [weight] * len(used),
                seed=setting.first,
                batch=setting.seeds,
                num_inference_steps=setting.steps,
                guidance_scale=setting.guidance,
                output_type="pt",
            )
        clean.append(torch.stack(seen))
        pictures.append(torch.stack(list(drawn)).float().cpu())
    return Sample(torch.cat(clean, dim=1), torch.cat(pictures))


@contextmanager
def _noting(pipe: Any) -> Iterator[list[Tensor]]:
    """Swaps in a scheduler without random numbers and collects the clean latents that it predicts."""
    before = pipe.scheduler
    scheduler = pipe.scheduler = _deterministic(before)
    inner, seen = scheduler.step, []

    def step(model_output: Tensor, timestep: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = inner(model_output, timestep, latents, *args, **kwargs)
        if hasattr(scheduler, "alphas_cumprod"):
            clean = result[1] if isinstance(result, tuple) else result.pred_original_sample
        else:
            clean = latents - scheduler.sigmas[scheduler.step_index - 1] * model_output
        seen.append(_unpacked(pipe, clean).float().cpu())
        return result

    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step
        pipe.scheduler = before


def _deterministic(scheduler: Any) -> Any:
    """DDIM, or Euler for flow matching, with the noise levels of ``scheduler``."""
    import diffusers

    flow = "Flow" in type(scheduler).__name__ or scheduler.config.get("prediction_type") == "flow_prediction"
    if flow:
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            scheduler.config, stochastic_sampling=False
        )
    return diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)


def _unpacked(pipe: Any, latents: Tensor) -> Tensor:
    """Latents as pictures, where the denoiser takes rows of 2 × 2 patches (FLUX)."""
    if latents.ndim == 4:
        return latents
    patches = round(latents.shape[1] ** 0.5)
    side = patches * 2 * pipe.vae_scale_factor
    return pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)
