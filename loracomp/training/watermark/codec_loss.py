"""The loss of a codec: messages read back through distortions, a null without leanings, a hidden mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loracomp.training.watermark.quality import peak, psnr, visible
from loracomp.watermark.codec import Codec
from loracomp.watermark.distortions import distorted

SHARPNESS = 4.0
REENCODED = 0.05


@dataclass(frozen=True)
class Weights:
    """What each part of the loss counts.

    Attributes:
        visible: Of the squared change in YUV, relative to that of the wanted PSNR.
        peak: Of the largest local change.
        null: Of what unmarked pictures and foreign codes read.
        zero: Of unmarked pictures reading zeros (codecs with a zero message alone).
    """

    visible: float
    peak: float
    null: float
    zero: float = 0.0


@dataclass(frozen=True)
class Found:
    """Loss of a batch, and what to watch."""

    loss: Tensor
    accuracy: Tensor
    psnr: Tensor
    projection: Tensor


class Latents:
    """A frozen autoencoder between pictures in [0, 1] and the denoiser's latents."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.scaling = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (batch, channels, h, w), modes."""
        made = self.vae.encode(pictures.to(self.vae.dtype) * 2 - 1).latent_dist.mode()
        return (made.float() - self.shift) * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, not clipped; gradients pass."""
        made = self.vae.decode((latents / self.scaling + self.shift).to(self.vae.dtype)).sample
        return made.float() / 2 + 0.5


def keyed_codes(count: int, bits: int, dimensions: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh codes (count, bits, dimensions), nearly orthogonal; messages of ±1; and unit directions."""
    codes = F.normalize(torch.randn(count, bits, dimensions, device=device), dim=-1)
    signs = torch.randint(2, (count, bits), device=device).float() * 2 - 1
    return codes, signs, F.normalize((signs[:, :, None] * codes).sum(1), dim=-1)


def codec_loss(
    codec: Codec,
    latents: Latents,
    pictures: Tensor,
    amplitude: float,
    wanted: float,
    shares: Sequence[tuple[str, float]],
    weights: Weights,
    source: torch.Generator,
) -> Found:
    """The loss of one batch with messages of its own.

    Args:
        codec: Networks.
        latents: The base's autoencoder.
        pictures: (batch, 3, pixels, pixels) in [0, 1].
        amplitude: Root mean square of the residual.
        wanted: PSNR in dB that the mark is led to.
        shares: Distortions and their shares.
        weights: Of the parts.
        source: Of the distortions.
    """
    shape, count = codec.shape, len(pictures)
    with torch.no_grad():
        z = latents.encode(pictures)
        clean = latents.decode(z).clamp(0, 1)
    codes = None
    if codec.keyed:
        codes, signs, given = keyed_codes(count, shape.bits, shape.dimensions, pictures.device)
    else:
        given = torch.randint(2, (count, shape.bits), device=pictures.device).float()
        signs = given * 2 - 1
    if codec.pooled:
        marked = clean + amplitude * codec.encoder(given, clean)
    else:
        marked = latents.decode(z + amplitude * codec.encoder(given))
    arrived = distorted(marked, shares, source)
    if float(torch.rand((), generator=source)) < REENCODED * 4:
        part = count // 4
        arrived = torch.cat([latents.decode(latents.encode(arrived[:part])).clamp(0, 1), arrived[part:]])
    plain = distorted(clean, shares, source)
    read = codec.extractor(torch.cat([arrived, plain]))
    logits, null = _logits(read[:count], codes), _logits(read[count:], codes)
    loss = F.softplus(-logits * signs).mean()
    loss = loss + weights.null * (null.mean(0).square().mean() + null.square().mean())
    if codes is not None:
        foreign = _logits(read[:count], codes.roll(1, 0))
        loss = loss + weights.null * foreign.square().mean()
    if weights.zero:
        loss = loss + weights.zero * F.softplus(null).mean()
    target = 10 ** (-wanted / 10)
    loss = loss + weights.visible * visible(marked, clean) / target
    loss = loss + weights.peak * peak(marked, clean) / target**0.5
    return Found(
        loss,
        (logits.detach() * signs > 0).float().mean(),
        psnr(marked.detach().clamp(0, 1), clean).mean(),
        (read[:count].detach() * given).sum(1).mean() if codec.keyed else logits.detach().abs().mean(),
    )


def _logits(read: Tensor, codes: Tensor | None) -> Tensor:
    """(batch, bits): scaled so that a perfect estimate of a code of length 1 gives ±:data:`SHARPNESS`."""
    if codes is None:
        return read
    return SHARPNESS * codes.shape[1] ** 0.5 * torch.einsum("bd,bld->bl", read, codes)
