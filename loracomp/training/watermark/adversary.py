"""Attackers with more than a filter: gradients, a mark of their own, an edit, another autoencoder.

None of them knows the key. Whether the one with gradients has an extractor, as after a leak, is the caller's
to say; without one that attacker has the base's autoencoder alone. The overwriter has the codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loracomp.adapter import Adapter
from loracomp.training.watermark.codec_loss import Latents
from loracomp.training.watermark.studio import Studio
from loracomp.watermark.attacks import Case
from loracomp.watermark.attacks.images import eight_bits
from loracomp.watermark.codec import Codec
from loracomp.watermark.keys import OwnerKey
from loracomp.watermark.pictures import fitted

BUDGETS = (2, 4, 8)
"""Largest change of a value, of 255."""
AREAS = (0.2, 0.4, 0.6)
"""Shares of the picture that are drawn anew."""
SHARE = 0.5
"""Share of the schedule that an edited place is noised to."""
PARTS = 16
STRANGER = OwnerKey(b"a stranger's mark over the owner's")


def pushed(
    pictures: Tensor, features: Callable[[Tensor], Tensor], budget: float, steps: int = 40, seed: int = 5
) -> Tensor:
    """Pictures (n, 3, H, W) whose features are as far from the plain ones' as ``budget`` allows.

    Projected gradient ascent by signs from a random start (Madry et al. 2018, arXiv:1706.06083), on the
    squared distance of features: the embedding attack of WAVES (arXiv:2401.08573) where these are an
    autoencoder's latents, the surrogate attack where they are an extractor's coordinates.

    Args:
        pictures: Values in [0, 1].
        features: Pictures to anything that has gradients.
        budget: Largest change of a value.
        steps: Steps, each of 2.5 times the budget over their number.
        seed: Of the start.
    """
    source = torch.Generator().manual_seed(seed)
    start = (2 * torch.rand(pictures.shape, generator=source) - 1) * budget
    change = start.to(pictures)
    with torch.no_grad():
        plain = features(pictures)
    for _ in range(steps):
        moved = (pictures + change).clamp(0, 1).requires_grad_()
        far = (features(moved) - plain).square().sum()
        (slope,) = torch.autograd.grad(far, moved)
        change = (change + 2.5 * budget / steps * slope.sign()).clamp(-budget, budget)
    return (pictures + change).clamp(0, 1).detach()


def gradient_cases(studio: Studio, surrogate: Codec | None = None, steps: int = 40) -> list[Case]:
    """:func:`pushed` on the base's autoencoder, and on a surrogate's extractor where there is one."""
    latents = Latents(studio.pipe.vae)

    def embedded(pictures: Tensor) -> Tensor:
        vae = latents.vae
        return vae.encode(pictures.to(vae.dtype) * 2 - 1).latent_dist.mode().float()

    kinds: dict[str, Callable[[Tensor], Tensor]] = {"embedding": embedded}
    if surrogate is not None:
        kinds["surrogate"] = _reading(surrogate)

    def attacked(features: Callable[[Tensor], Tensor], budget: int) -> Callable[[Adapter], Tensor]:
        def pictures(adapter: Adapter) -> Tensor:
            parts = studio.alone(adapter).split(PARTS)
            moved = [
                pushed(part.to(studio.pipe.device), features, budget / 255, steps, seed).cpu()
                for seed, part in enumerate(parts)
            ]
            return eight_bits(torch.cat(moved))

        return pictures

    return [
        Case("adversary", name, f"{budget}/255", attacked(features, budget))
        for name, features in kinds.items()
        for budget in BUDGETS
    ]


def _reading(codec: Codec) -> Callable[[Tensor], Tensor]:
    side, extractor = codec.shape.pixels, codec.extractor
    return lambda pictures: extractor(torch.stack([fitted(picture, side) for picture in pictures])).float()


def overwriting_cases(studio: Studio, codec: Codec) -> list[Case]:
    """Another mark by the same codec on top, through the base's autoencoder, at one and two amplitudes."""
    latents = Latents(studio.pipe.vae)
    key = STRANGER.issue("over", bits=codec.shape.bits)

    @torch.no_grad()
    def over(pictures: Tensor, strength: float) -> Tensor:
        device = studio.pipe.device
        mark = strength * codec.residual(key).to(device)
        made = [
            latents.decode(latents.encode(part.to(device)) + mark).cpu() for part in pictures.split(PARTS)
        ]
        return eight_bits(torch.cat(made))

    def drawn(strength: float) -> Callable[[Adapter], Tensor]:
        return lambda adapter: over(studio.alone(adapter), strength)

    return [Case("adversary", "overwrite", f"{strength:g}", drawn(strength)) for strength in (1.0, 2.0)]


def editing_cases(studio: Studio) -> list[Case]:
    """A rectangle drawn anew by image to image, the rest as it was."""

    def edited(area: float) -> Callable[[Adapter], Tensor]:
        def pictures(adapter: Adapter) -> Tensor:
            plain = studio.alone(adapter)
            return torch.where(_mask(plain, area), studio.regenerated(plain, SHARE), plain)

        return pictures

    return [Case("base", "edit", f"{area:g}", edited(area)) for area in AREAS]


def _mask(pictures: Tensor, area: float) -> Tensor:
    """Where a picture changes, (n, 1, H, W): a rectangle of that share, another place in each picture."""
    count, _, height, width = pictures.shape
    tall, wide = round(height * area**0.5), round(width * area**0.5)
    source = torch.Generator().manual_seed(round(1000 * area))
    top = torch.randint(height - tall + 1, (count, 1, 1, 1), generator=source)
    left = torch.randint(width - wide + 1, (count, 1, 1, 1), generator=source)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)


def foreign_cases(studio: Studio, vae: Any) -> list[Case]:
    """Through an autoencoder that is not the base's, once."""
    latents = Latents(vae)

    @torch.no_grad()
    def encoded(adapter: Adapter) -> Tensor:
        parts = studio.alone(adapter).split(PARTS)
        return eight_bits(torch.cat([latents.decode(latents.encode(p.to(vae.device))).cpu() for p in parts]))

    return [Case("base", "re-encode", "foreign", encoded)]
