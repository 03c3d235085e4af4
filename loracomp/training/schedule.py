"""What a config makes of a step: its learning rate, and its random draws."""

from __future__ import annotations

import math
from typing import Literal

from loracomp.training.config import TrainConfig
from loracomp.training.order import Chances, Draw, draw


def rate(step: int, *, peak: float, steps: int, warmup: int, shape: Literal["cosine", "constant"]) -> float:
    """Learning rate of optimiser step ``step`` in [0, steps).

    Rises in equal parts over ``warmup`` steps (at most a fifth of the run), then stays or falls along
    half a cosine towards zero (SGDR, arXiv:1608.03983, eq. 5, without restarts).
    """
    rise = min(warmup, steps // 5)
    if step < rise:
        return peak * (step + 1) / rise
    if shape == "constant":
        return peak
    done = (step - rise) / max(1, steps - rise)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def rate_of(config: TrainConfig, step: int) -> float:
    """Learning rate of a run's step in [0, steps)."""
    return rate(step, peak=config.lr, steps=config.steps, warmup=config.warmup, shape=config.schedule)


def draw_of(config: TrainConfig, step: int, part: int, count: int, latent: tuple[int, ...]) -> Draw:
    """The random part of one batch of a run.

    Args:
        config: The run's config.
        step: Optimiser step in [0, steps).
        part: Forward pass of the step, in [0, accumulation).
        count: Pictures in the data.
        latent: Shape of one latent (channels, height, width).
    """
    chances = Chances(
        flip=0.5 if config.flip else 0.0,
        empty=config.caption_dropout,
        terminal=config.terminal_share,
        offset=config.noise_offset,
    )
    position = (step * config.accumulation + part) * config.batch
    return draw(config.seed, position, config.batch, count, latent, chances)
