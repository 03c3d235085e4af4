"""Makes the tables of layer names and shapes that ``bases.modules`` reads.

Run ``python -m loracomp.training.tables`` after a change of glyph or a new row in ``bases.py``.
The public configurations below are built on the meta device: no weights, no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loracomp.bases import classic_path

ASSETS = Path(__file__).parents[1] / "assets"
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3_DIT = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}


def layer_shapes(component: str, model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path and weight shape of each linear and convolution layer, text encoders in classic naming."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield classic_path(f"{component}.{path}"), tuple(module.weight.shape)


def _unet(**config: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def _clip(config: dict[str, Any], projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**config, projection_dim=config["hidden_size"]))


def _t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def _glyph() -> dict[str, nn.Module]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(ASSETS / "glyph/unet"))
    config = CLIPTextConfig.from_pretrained(ASSETS / "glyph/text_encoder")
    return {"unet": unet, "text_encoder": CLIPTextModel(config)}


def _sd3() -> dict[str, nn.Module]:
    from diffusers import SD3Transformer2DModel

    encoders = {"text_encoder": _clip(CLIP_L, True), "text_encoder_2": _clip(CLIP_G, True)}
    return {"transformer": SD3Transformer2DModel(**SD3_DIT), **encoders, "text_encoder_3": _t5()}


def _flux() -> dict[str, nn.Module]:
    from diffusers import FluxTransformer2DModel

    denoiser = FluxTransformer2DModel(guidance_embeds=True)
    return {"transformer": denoiser, "text_encoder": _clip(CLIP_L), "text_encoder_2": _t5()}


BUILDERS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "glyph": _glyph,
    "sd15": lambda: {
        "unet": _unet(cross_attention_dim=768, attention_head_dim=8),
        "text_encoder": _clip(CLIP_L),
    },
    "sdxl": lambda: {
        "unet": _unet(**SDXL_UNET),
        "text_encoder": _clip(CLIP_L),
        "text_encoder_2": _clip(CLIP_G, True),
    },
    "sd3": _sd3,
    "flux": _flux,
}


def table(name: str) -> dict[str, tuple[int, ...]]:
    """Layer shapes of base ``name``, built from its public configuration."""
    with torch.device("meta"):
        components = BUILDERS[name]()
    return dict(row for part, model in components.items() for row in layer_shapes(part, model))


def main() -> None:
    """Writes all tables."""
    for name in BUILDERS:
        rows = ",\n".join(f"{json.dumps(path)}:{json.dumps(shape)}" for path, shape in table(name).items())
        target = ASSETS / "modules" / f"{name}.json"
        target.write_text(f"{{\n{rows}\n}}\n")
        print(f"{target.name}: {len(table(name))} layers")


if __name__ == "__main__":
    main()
