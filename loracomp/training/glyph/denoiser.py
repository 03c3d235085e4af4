"""The denoiser and text encoder: shapes, the noise schedule, and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class DenoiserConfig:
    """Widths of the denoiser at 16, 8 and 4 latent pixels, and the size of the text encoder."""

    widths: tuple[int, ...] = (96, 160, 224)
    latents: int = 12
    groups: int = 32
    sample: int = 16
    text_width: int = 256
    text_layers: int = 3
    text_inner: int = 512
    text_heads: int = 4
    vocabulary: int = 4096
    length: int = 32


def build_unet(config: DenoiserConfig) -> UNet2DConditionModel:
    """Three levels; cross-attention on the first two and in the middle; four heads."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=config.sample,
        in_channels=config.latents,
        out_channels=config.latents,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=config.widths,
        layers_per_block=1,
        norm_num_groups=config.groups,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,
    )


def build_text_encoder(config: DenoiserConfig) -> CLIPTextModel:
    """A small CLIP text model; token 0 starts a text, token 1 ends and pads it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.text_width,
            intermediate_size=config.text_inner,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.length,
            projection_dim=config.text_width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR and trailing timesteps."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def draw_timesteps(count: int, device: torch.device | str, last: float = 0.05) -> Tensor:
    """Uniform timesteps 0 to 999 (count,), a share ``last`` of them moved to 999."""
    steps = torch.randint(1000, (count,), device=device)
    moved = torch.rand(count, device=device) < last
    return torch.where(moved, torch.full_like(steps, 999), steps)


class DenoiserLoss(nn.Module):
    """Mean squared error of the predicted velocity.

    ``forward`` takes latents and noise (B, C, 16, 16), timesteps (B,) and token ids (B, 32).
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        signal = build_scheduler().alphas_cumprod.float()
        self.register_buffer("signal", signal, persistent=False)

    def forward(self, latents: Tensor, noise: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        share = self.signal[steps][:, None, None, None]  # type: ignore[index]
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        velocity = share.sqrt() * noise - (1 - share).sqrt() * latents
        words = self.text_encoder(ids)[0]
        made = self.unet(noisy, steps, words, return_dict=False)[0]
        loss: Tensor = (made.float() - velocity).square().mean()
        return loss
