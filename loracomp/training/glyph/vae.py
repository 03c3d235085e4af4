"""The autoencoder: its shape, its loss, whitening of its latents, and its PSNR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class VaeConfig:
    """Width of each resolution (128, 64, 32 and 16 pixels) and the number of latent channels."""

    widths: tuple[int, ...] = (48, 64, 96, 96)
    latents: int = 12
    groups: int = 16
    size: int = 128


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """A plain diffusers autoencoder whose scaling factor is 1: whitening is folded into it."""
    from diffusers import AutoencoderKL

    depth = len(config.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=config.widths,
        layers_per_block=1,
        latent_channels=config.latents,
        norm_num_groups=config.groups,
        sample_size=config.size,
        scaling_factor=1.0,
    )


class VaeLoss(nn.Module):
    """Loss of one batch: L1, L1 of differences, L1 at quarter size, squared error, and KL.

    ``forward`` takes pictures (B, 3, H, W) in [-1, 1] and noise of the latents' shape, and returns
    the loss and the mean squared error on the [0, 1] scale.
    """

    def __init__(self, vae: AutoencoderKL, kl: float = 3e-4) -> None:
        super().__init__()
        self.vae = vae
        self.kl = kl

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.vae.quant_conv(self.vae.encoder(pictures))
        mean, spread = moments.float().chunk(2, 1)
        spread = spread.clamp(-20, 10)
        latents = mean + torch.exp(0.5 * spread) * noise
        made = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        error = made - pictures
        square = error.square().mean()
        across = (error[..., 1:] - error[..., :-1]).abs().mean()
        down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        coarse = F.avg_pool2d(error, 4).abs().mean()
        prior = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
        loss = error.abs().mean() + 0.5 * (across + down) + 0.5 * coarse + 2 * square
        return loss + self.kl * prior, square.detach() / 4


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Mean latents (B, C, H/8, W/8) of pictures (B, 3, H, W) in [-1, 1]."""
    moments: Tensor = vae.quant_conv(vae.encoder(pictures))
    return moments.chunk(2, 1)[0]


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] through the autoencoder and back, clipped."""
    made: Tensor = vae.decoder(vae.post_quant_conv(encode(vae, pictures)))
    return made.clamp(-1, 1)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor, batch: int = 64) -> Tensor:
    """PSNR in dB of each picture (B, 3, H, W) in [-1, 1], on 8-bit reconstructions: (B,)."""
    values = []
    for part in pictures.split(batch):
        made = ((reconstruct(vae, part).float() + 1) * 127.5).round()
        true = ((part.float() + 1) * 127.5).round()
        error = ((made - true) / 255).square().mean((1, 2, 3)).clamp_min(1e-10)
        values.append(-10 * torch.log10(error))
    return torch.cat(values)


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Fold ``(z - mean) / deviation`` per channel (C,) into the 1 x 1 convolutions, in place.

    The reconstructions stay the same; latents of pictures with these statistics become standard.
    """
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()
    matrix = post.weight[:, :, 0, 0].clone()
    post.bias += matrix @ mean
    post.weight.copy_((matrix * deviation[None, :])[:, :, None, None])
