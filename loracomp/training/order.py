"""Every random choice of a run, as a function of seed and position.

Nothing here keeps state: the draws of step 7 are the same whether the run started at step 0 or at
step 6, on a CPU or a GPU, alone or beside other runs. A checkpoint therefore needs the step number
and no generator states, and two runs with one seed see the same data in the same order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from loracomp.training.losses import stratified


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator whose stream depends on the seed and the purpose alone."""
    text = "/".join(str(part) for part in (seed, *purpose))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def picture_order(seed: int, start: int, length: int, count: int) -> Tensor:
    """Indices of samples ``start`` to ``start + length`` in an endless run of shuffled epochs.

    Args:
        seed: Seed of the run.
        start: Samples drawn before.
        length: Samples wanted.
        count: Pictures in the data; each epoch has all of them once.

    Returns:
        (length,) int64 in [0, count).
    """
    first, last = start // count, (start + length - 1) // count
    epochs = [
        torch.randperm(count, generator=generator_for(seed, "epoch", e)) for e in range(first, last + 1)
    ]
    return torch.cat(epochs)[start - first * count :][:length]


@dataclass(frozen=True)
class Draw:
    """The random part of one batch, on the CPU.

    Attributes:
        pictures: (batch,) indices.
        mirrored: (batch,) bool.
        uncaptioned: (batch,) bool: trained with the empty caption.
        level: (batch,) noise levels as uniform numbers in (0, 1), stratified.
        terminal: (batch,) bool: moved to the last timestep.
        noise: Standard normal, of the latents' shape.
    """

    pictures: Tensor
    mirrored: Tensor
    uncaptioned: Tensor
    level: Tensor
    terminal: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Chances:
    """Probabilities of the draws: mirroring, an empty caption, the last timestep; and the noise offset."""

    flip: float = 0.0
    empty: float = 0.0
    terminal: float = 0.0
    offset: float = 0.0


def draw(seed: int, position: int, batch: int, count: int, latent: tuple[int, ...], chances: Chances) -> Draw:
    """The random part of the batch that starts at sample ``position``.

    Args:
        seed: Seed of the run.
        position: Samples drawn before this batch.
        batch: Samples in it.
        count: Pictures in the data.
        latent: Shape of one latent (channels, height, width).
        chances: Probabilities and noise offset (a share of noise constant over each channel).
    """
    source = generator_for(seed, "batch", position)

    def happens(chance: float) -> Tensor:
        return torch.rand(batch, generator=source) < chance

    mirrored, uncaptioned, terminal = (
        happens(chance) for chance in (chances.flip, chances.empty, chances.terminal)
    )
    noise = torch.randn((batch, *latent), generator=source)
    if chances.offset:
        noise += chances.offset * torch.randn((batch, latent[0], 1, 1), generator=source)
    return Draw(
        pictures=picture_order(seed, position, batch, count),
        mirrored=mirrored,
        uncaptioned=uncaptioned,
        level=stratified(batch, source),
        terminal=terminal,
        noise=noise,
    )
