"""Pipelines of every supported kind, a few thousand weights each, built from configuration objects."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loracomp
from loracomp.adapter import Adapter
from loracomp.bases import classic_path
from loracomp.lowrank import LowRank

GLYPH = Path(loracomp.__file__).parent / "assets" / "glyph"
KINDS = ("sd15", "sdxl", "sd3", "flux")


def tokenizer(length: int = 16) -> Any:
    """glyph's tokenizer, cut to ``length`` tokens."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(GLYPH / "tokenizer", model_max_length=length)


def _clip(projection: bool = False, width: int = 32) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _t5(width: int = 32) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return T5EncoderModel(T5Config(vocab_size=4096, feed_forward_proj="gated-gelu", **sizes))


def _vae(channels: int = 4) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(16, 32), norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip


def _unet(context: int, **extra: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, cross_attention_dim=context, **extra,
    )  # fmt: skip


def _sd15() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=_vae(), unet=_unet(32), text_encoder=_clip(), tokenizer=tokenizer(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        64, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, text_encoder=_clip(), text_encoder_2=_clip(True), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    denoiser = SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=denoiser, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(),
        text_encoder=_clip(True), tokenizer=tokenizer(), text_encoder_2=_clip(True),
        tokenizer_2=tokenizer(), text_encoder_3=_t5(64), tokenizer_3=tokenizer(),
    )  # fmt: skip


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    denoiser = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=denoiser, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(), text_encoder=_clip(),
        tokenizer=tokenizer(), text_encoder_2=_t5(), tokenizer_2=tokenizer(),
    )  # fmt: skip


_BUILDERS = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


def tiny_pipeline(kind: str, seed: int = 0) -> Any:
    """A text-to-image pipeline of the given kind with random weights, 32-px images, in eval mode."""
    torch.manual_seed(seed)
    pipe = _BUILDERS[kind]()
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def layer_table(pipe: Any) -> dict[str, tuple[int, ...]]:
    """Weight shapes of the denoiser's and text encoders' layers, as ``bases.modules`` gives them."""
    return {
        classic_path(f"{name}.{path}"): tuple(module.weight.shape)
        for name, model in pipe.components.items()
        if isinstance(model, nn.Module) and name.startswith(("unet", "transformer", "text_encoder"))
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def random_adapter(
    shapes: dict[str, tuple[int, ...]],
    suffixes: Iterable[str] = ("to_q", "to_k", "to_v", "to_out.0"),
    rank: int = 4,
    alpha: float | None = None,
    seed: int = 0,
    name: str = "tiny",
    base: str = "custom",
    size: float = 0.1,
) -> Adapter:
    """An adapter with normal factors on every layer of ``shapes`` whose path ends in one of ``suffixes``."""
    generator = torch.Generator().manual_seed(seed)

    def layer(shape: tuple[int, ...]) -> LowRank:
        tail = (1,) * (len(shape) - 2)
        down = torch.randn((rank, *shape[1:]), generator=generator) * size
        return LowRank(down, torch.randn((shape[0], rank, *tail), generator=generator) * size, alpha)

    chosen = {path: layer(shape) for path, shape in shapes.items() if path.endswith(tuple(suffixes))}
    return Adapter(chosen, base, name)


def run(pipe: Any, prompt: str = "a red apple", seed: int = 0, **options: Any) -> torch.Tensor:
    """Latents of one short generation, float32."""
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32} | options
    generator = torch.Generator().manual_seed(seed)
    if type(pipe).__name__ == "FluxPipeline" or "3Pipeline" in type(pipe).__name__:
        settings["max_sequence_length"] = 16
    with torch.no_grad():
        out = pipe(prompt, generator=generator, output_type="latent", **settings)
    return out.images.float()


@cache
def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """Layer table of a tiny pipeline."""
    return layer_table(tiny_pipeline(kind))
