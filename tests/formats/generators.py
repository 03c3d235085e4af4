"""Files of every dialect on every base, with names written out by hand and a known ΔW.

Independent of loracomp's writer: each row gives a module's name in the file, the layers it stands for
in the order of its output rows, and nothing is derived from the tables that the reader uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
BARE = (".down.weight", ".up.weight")
_SD = "down_blocks.1.attentions.0.transformer_blocks.0"
_TEXT = "text_model.encoder.layers.3.self_attn.q_proj"
_DOUBLE = "transformer.transformer_blocks.7"
_SINGLE = "transformer.single_transformer_blocks.30"
_SINGLE_QKV = (f"{_SINGLE}.attn.to_q", f"{_SINGLE}.attn.to_k", f"{_SINGLE}.attn.to_v")
_IMAGE_QKV = (f"{_DOUBLE}.attn.to_q", f"{_DOUBLE}.attn.to_k", f"{_DOUBLE}.attn.to_v")
_TEXT_QKV = (f"{_DOUBLE}.attn.add_q_proj", f"{_DOUBLE}.attn.add_k_proj", f"{_DOUBLE}.attn.add_v_proj")


@dataclass(frozen=True)
class Written:
    """A kind of file.

    Attributes:
        base: The base it is for.
        names: Layers by module name, in the order of the module's output rows.
        ends: Suffixes of the down and the up factor.
        alpha: Whether it has alpha tensors.
        dialect: What the reader should call it.
        swapped: Modules whose halves are scale and shift in the other order.
    """

    base: str
    names: dict[str, tuple[str, ...]]
    ends: tuple[str, str] = PEFT
    alpha: bool = False
    dialect: str = "diffusers"
    swapped: frozenset[str] = field(default_factory=frozenset)


FLUX_NATIVE = {
    "double_blocks.7.img_attn.qkv": _IMAGE_QKV,
    "double_blocks.7.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.7.txt_attn.qkv": _TEXT_QKV,
    "double_blocks.7.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.7.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "single_blocks.30.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp"),
    "single_blocks.30.linear2": (f"{_SINGLE}.proj_out",),
    "guidance_in.in_layer": ("transformer.time_text_embed.guidance_embedder.linear_1",),
    "final_layer.adaLN_modulation.1": ("transformer.norm_out.linear",),
}
_FLUX_SWAPPED = frozenset({"final_layer.adaLN_modulation.1"})
SD3_NATIVE = {
    "joint_blocks.7.x_block.attn.qkv": _IMAGE_QKV,
    "joint_blocks.7.x_block.attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "joint_blocks.7.context_block.attn.qkv": _TEXT_QKV,
    "joint_blocks.7.context_block.mlp.fc2": (f"{_DOUBLE}.ff_context.net.2",),
    "joint_blocks.7.context_block.adaLN_modulation.1": (f"{_DOUBLE}.norm1_context.linear",),
    "joint_blocks.23.context_block.adaLN_modulation.1": (
        "transformer.transformer_blocks.23.norm1_context.linear",
    ),
    "t_embedder.mlp.0": ("transformer.time_text_embed.timestep_embedder.linear_1",),
}
_SD3_SWAPPED = frozenset({"joint_blocks.23.context_block.adaLN_modulation.1"})
SDXL_NATIVE = {
    "input_blocks.4.1.transformer_blocks.0.attn1.to_q": (f"unet.{_SD}.attn1.to_q",),
    "input_blocks.5.0.in_layers.2": ("unet.down_blocks.1.resnets.1.conv1",),
    "input_blocks.6.0.op": ("unet.down_blocks.1.downsamplers.0.conv",),
    "middle_block.1.transformer_blocks.9.ff.net.0.proj": (
        "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
    ),
    "output_blocks.0.0.skip_connection": ("unet.up_blocks.0.resnets.0.conv_shortcut",),
    "output_blocks.5.2.conv": ("unet.up_blocks.1.upsamplers.0.conv",),
}
_FLAT = {
    f"unet.{_SD}.attn2.to_out.0": "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
    f"unet.{_SD}.ff.net.0.proj": "down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "unet.mid_block.resnets.0.conv1": "mid_block_resnets_0_conv1",
    "unet.up_blocks.1.attentions.0.proj_in": "up_blocks_1_attentions_0_proj_in",
}
_FLAT_TEXT = "text_model_encoder_layers_3_self_attn_q_proj"
_UNET = (
    f"unet.{_SD}.attn1.to_k",
    "unet.mid_block.resnets.1.conv2",
    "unet.up_blocks.1.resnets.0.time_emb_proj",
)
_FLUX_DIT = (*_IMAGE_QKV, f"{_SINGLE}.proj_mlp", f"{_SINGLE}.proj_out")


def _flat(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def _same(paths: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {path: (path,) for path in paths}


def _flat_unet(text_prefix: str) -> dict[str, tuple[str, ...]]:
    return {
        **{f"lora_unet_{flat}": (path,) for path, flat in _FLAT.items()},
        f"{text_prefix}_{_FLAT_TEXT}": (f"text_encoder.{_TEXT}",),
    }


def _natively(prefix: str, names: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {prefix + name: paths for name, paths in names.items()}


FILES: dict[str, Written] = {
    "kohya-sd15": Written("sd15", _flat_unet("lora_te"), KOHYA, True, "kohya"),
    "kohya-sdxl": Written(
        "sdxl",
        {
            **{_flat(name): paths for name, paths in SDXL_NATIVE.items()},
            f"lora_te1_{_FLAT_TEXT}": (f"text_encoder.{_TEXT}",),
            f"lora_te2_{_FLAT_TEXT}": (f"text_encoder_2.{_TEXT}",),
        },
        KOHYA,
        True,
        "kohya",
    ),
    "kohya-sdxl-diffusers-names": Written("sdxl", _flat_unet("lora_te1"), KOHYA, True, "kohya"),
    "kohya-sd3": Written(
        "sd3",
        {
            **{_flat(name): paths for name, paths in SD3_NATIVE.items()},
            "lora_te3_encoder_block_2_layer_0_SelfAttention_q": (
                "text_encoder_3.encoder.block.2.layer.0.SelfAttention.q",
            ),
        },
        KOHYA,
        True,
        "kohya",
        frozenset(map(_flat, _SD3_SWAPPED)),
    ),
    "kohya-flux": Written(
        "flux",
        {
            **{_flat(name): paths for name, paths in FLUX_NATIVE.items()},
            f"lora_te1_{_FLAT_TEXT}": (f"text_encoder.{_TEXT}",),
        },
        KOHYA,
        True,
        "kohya",
        frozenset(map(_flat, _FLUX_SWAPPED)),
    ),
    "diffusers-sd15": Written("sd15", _same((*_UNET, f"text_encoder.{_TEXT}"))),
    "diffusers-sdxl": Written("sdxl", _same((*_UNET, f"text_encoder_2.{_TEXT}"))),
    "diffusers-sd3": Written("sd3", _same((*_IMAGE_QKV, *_TEXT_QKV))),
    "ai-toolkit-flux": Written("flux", _same(_FLUX_DIT)),
    "diffusers-with-alpha-tensors": Written("flux", _same(_FLUX_DIT), PEFT, True),
    "diffusers-old-sd15": Written("sd15", _same(_UNET), OLD, False, "diffusers-old"),
    "processors-sdxl": Written(
        "sdxl",
        {
            f"unet.{_SD}.attn1.processor.to_q_lora": (f"unet.{_SD}.attn1.to_q",),
            f"unet.{_SD}.attn2.processor.to_out_lora": (f"unet.{_SD}.attn2.to_out.0",),
            f"unet.{_SD}.attn2.processor.to_k_lora": (f"unet.{_SD}.attn2.to_k",),
        },
        BARE,
        False,
        "diffusers-old",
    ),
    "peft-sdxl": Written(
        "sdxl", {f"base_model.model.{p.removeprefix('unet.')}": (p,) for p in _UNET}, PEFT, False, "peft"
    ),
    "peft-flux": Written(
        "flux",
        {f"base_model.model.{p.removeprefix('transformer.')}": (p,) for p in _FLUX_DIT},
        (".lora_A.default.weight", ".lora_B.default.weight"),
        False,
        "peft",
    ),
    "bare-sdxl": Written("sdxl", {p.removeprefix("unet."): (p,) for p in _UNET}, PEFT, False, "bare"),
    "bfl-flux": Written("flux", FLUX_NATIVE, PEFT, False, "bfl", _FLUX_SWAPPED),
    "comfyui-flux": Written(
        "flux",
        _natively("diffusion_model.", FLUX_NATIVE),
        PEFT,
        True,
        "comfyui",
        frozenset(f"diffusion_model.{name}" for name in _FLUX_SWAPPED),
    ),
    "comfyui-sdxl": Written("sdxl", _natively("diffusion_model.", SDXL_NATIVE), KOHYA, True, "comfyui"),
    "comfyui-sd3": Written(
        "sd3",
        {
            **_natively("diffusion_model.", SD3_NATIVE),
            f"text_encoders.clip_g.transformer.{_TEXT}": (f"text_encoder_2.{_TEXT}",),
        },
        KOHYA,
        True,
        "comfyui",
        frozenset(f"diffusion_model.{name}" for name in _SD3_SWAPPED),
    ),
    "xlabs-flux": Written(
        "flux",
        {
            "double_blocks.7.processor.qkv_lora1": _IMAGE_QKV,
            "double_blocks.7.processor.proj_lora2": (f"{_DOUBLE}.attn.to_add_out",),
            "single_blocks.30.processor.qkv_lora": _SINGLE_QKV,
            "single_blocks.30.processor.proj_lora": (f"{_SINGLE}.proj_out",),
        },
        BARE,
        False,
        "xlabs",
    ),
    "onetrainer-flux": Written(
        "flux",
        {
            "lora_transformer_transformer_blocks_7_attn_add_k_proj": (f"{_DOUBLE}.attn.add_k_proj",),
            "lora_transformer_single_transformer_blocks_30_attn_to_q": (f"{_SINGLE}.attn.to_q",),
            "lora_transformer_context_embedder": ("transformer.context_embedder",),
        },
        KOHYA,
        True,
        "onetrainer",
    ),
    "lycoris-flux": Written(
        "flux",
        {
            "lycoris_transformer_blocks_7_attn_to_q": (f"{_DOUBLE}.attn.to_q",),
            "lycoris_single_transformer_blocks_30_proj_out": (f"{_SINGLE}.proj_out",),
        },
        KOHYA,
        True,
        "lycoris",
    ),
    "lycoris-sdxl": Written(
        "sdxl", {f"lycoris_{flat}": (path,) for path, flat in _FLAT.items()}, KOHYA, True, "lycoris"
    ),
}


@dataclass(frozen=True)
class Known:
    """The update of one layer of a written file: up · down · scale."""

    up: Tensor
    down: Tensor
    scale: float


def write(kind: Written, shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, Known]:
    """Writes a file and gives the update of each layer; ranks and alphas differ from module to module."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    known: dict[str, Known] = {}
    for index, (name, layers) in enumerate(kind.names.items()):
        rank, alpha = 2 + index % 3, (0.5, 8.0, 3.0)[index % 3] if kind.alpha else None
        sides = [shapes[layer] for layer in layers]
        down = torch.randn((rank, *sides[0][1:]), generator=generator)
        up = torch.randn(
            (sum(side[0] for side in sides), rank, *(1,) * (len(sides[0]) - 2)), generator=generator
        )
        tensors |= {name + kind.ends[0]: down, name + kind.ends[1]: up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        row = 0
        for layer, side in zip(layers, sides, strict=True):
            part = up[row : row + side[0]]
            if name in kind.swapped:
                shift, scale = part.chunk(2)
                part = torch.cat([scale, shift])
            known[layer] = Known(part, down, 1.0 if alpha is None else alpha / rank)
            row += side[0]
    save_file(tensors, path)
    return known
