"""A file for a model that loracomp does not know is told as such, from diffusers' own layers and by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loracomp.bases import BASES, modules
from loracomp.errors import BaseMismatchError, FormatError
from loracomp.formats import diagnose, inspect, load
from loracomp.formats.families import resemblance

ATTENTION = ("to_q", "to_k", "to_v")
# diffusers' class, the arguments that make it small or real, the family that must be told.
MODELS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("WanTransformer3DModel", {"num_layers": 2}, "Wan 2.1 or 2.2"),
    ("QwenImageTransformer2DModel", {}, "Qwen-Image"),
    ("HunyuanVideoTransformer3DModel", {}, "HunyuanVideo"),
    ("HunyuanImageTransformer2DModel", {"num_layers": 2, "num_single_layers": 2}, "HunyuanImage 2.1"),
    ("Lumina2Transformer2DModel", {"num_layers": 2}, "Lumina-Image 2"),
    ("ZImageTransformer2DModel", {"n_layers": 2}, "Z-Image"),
    ("PixArtTransformer2DModel", {"num_layers": 2}, "PixArt or Sana 0.6B"),
    ("SanaTransformer2DModel", {"num_layers": 2}, "Sana 1.6B"),
    ("LTXVideoTransformer3DModel", {"num_layers": 2}, "LTX-Video"),
    ("LTX2VideoTransformer3DModel", {"num_layers": 2}, "LTX-2"),
    ("CogVideoXTransformer3DModel", {"num_layers": 2}, "CogVideoX 2B"),
    ("CogView4Transformer2DModel", {"num_layers": 2}, "CogView4"),
    ("MochiTransformer3DModel", {"num_layers": 2}, "CogVideoX 5B or Mochi"),
    ("AuraFlowTransformer2DModel", {"num_single_dit_layers": 2}, "AuraFlow"),
    ("Flux2Transformer2DModel", {"num_layers": 2, "num_single_layers": 2}, "FLUX.2 dev"),
    ("StableCascadeUNet", {"conditioning_dim": 2048}, "Stable Cascade"),
    ("CosmosTransformer3DModel", {"num_layers": 2}, "LTX-Video 13B, LTX-2 or Cosmos 1"),
)
# Names of original code, as ComfyUI's and kohya's trainers write them, with rows and columns.
NAMES: tuple[tuple[dict[str, tuple[int, int]], str], ...] = (
    ({"diffusion_model.blocks.0.self_attn.q": (5120, 5120)}, "Wan 2.1 or 2.2"),
    ({"lora_unet_blocks_39_cross_attn_k_img": (1536, 1536)}, "Wan 2.1 or 2.2"),
    ({"lora_unet_double_blocks_3_img_mlp_fc1": (12288, 3072)}, "HunyuanVideo"),
    ({"diffusion_model.layers.4.attention.qkv": (6912, 2304)}, "Lumina-Image 2"),
    ({"diffusion_model.layers.4.attention.qkv": (11520, 3840)}, "Z-Image"),
    ({"diffusion_model.transformer_blocks.0.attn1.to_q": (2048, 2048)}, "LTX-Video"),
    ({"diffusion_model.double_layers.1.attn.w1q": (3072, 3072)}, "AuraFlow"),
    ({"lora_prior_unet_down_blocks_0_2_attention_attn_out_proj": (2048, 2048)}, "Stable Cascade"),
    ({"diffusion_model.distilled_guidance_layer.layers.0.in_layer": (5120, 5120)}, "Chroma"),
    ({"diffusion_model.joint_blocks.30.x_block.attn.qkv": (7296, 2432)}, "Stable Diffusion 3.5 large"),
    ({"transformer.double_stream_blocks.0.block.attn1.to_q": (2560, 2560)}, "HiDream-I1"),
    ({"diffusion_model.blocks.0.self_attn.q_proj": (2048, 2048)}, "Cosmos Predict 2 or Anima"),
    ({"base_model.model.model.layers.0.self_attn.q_proj": (4096, 4096)}, "a language model"),
)


def lora(sizes: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (rows, columns) in sizes.items():
        tensors[f"{name}.lora_A.weight"] = torch.ones(1, columns)
        tensors[f"{name}.lora_B.weight"] = torch.ones(rows, 1)
    return tensors


def layers(kind: str, options: dict[str, Any], endings: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the linear layers of a diffusers model, never allocated."""
    import diffusers

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = getattr(diffusers, kind)(**options)
    return {
        path: (layer.out_features, layer.in_features)
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path.endswith(endings)
    }


@pytest.mark.parametrize(("kind", "options", "family"), MODELS, ids=[model[0] for model in MODELS])
def test_diffusers_layers_tell_their_family(kind: str, options: dict[str, Any], family: str) -> None:
    sizes = layers(kind, options, ATTENTION)
    assert sizes
    for names in (
        {f"transformer.{path}": size for path, size in sizes.items()},
        {f"lora_unet_{path.replace('.', '_')}": size for path, size in sizes.items()},
    ):
        assert resemblance(names.items()).startswith(f"{family} ("), names


@pytest.mark.parametrize(("sizes", "family"), NAMES, ids=[family for _, family in NAMES])
def test_original_names_tell_their_family(
    sizes: dict[str, tuple[int, int]], family: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(lora(sizes), path)
    with pytest.raises(FormatError, match=r"looks made for|none of the bases") as caught:
        load(path)
    assert f"looks made for {family} (1 of 1 modules" in str(caught.value)
    with pytest.raises(BaseMismatchError, match="it looks like"):
        load(path, base="sdxl")


def test_layers_that_fit_a_base_by_chance_do_not_hide_the_family(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    qwen = layers("QwenImageTransformer2DModel", {}, ATTENTION)
    save_file(lora({f"transformer.{name}": size for name, size in qwen.items()}), path)
    found = diagnose(path)
    assert found.report is not None and found.report.base == "flux" and not found.complete
    first = next(finding for finding in found.findings if finding.code == "family")
    assert first.level == "error" and "looks made for Qwen-Image (180 of 180 modules" in first.message


def test_the_width_of_the_text_tells_stable_diffusion_2(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sizes = {
        name: (shape[0], 1024 if name.endswith(("attn2.to_k", "attn2.to_v")) else shape[1])
        for name, shape in modules("sd15").items()
        if name.startswith("unet.") and name.endswith((".to_q", ".to_k", ".to_v"))
    }
    save_file(lora(sizes), path)
    report = inspect(path)
    assert report.base == "sd15" and report.resembles.startswith("Stable Diffusion 2 (32 of 96 modules")


@pytest.mark.parametrize("base", BASES)
def test_files_of_known_bases_resemble_nothing_else(base: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sizes = {name: (shape[0], shape[1]) for name, shape in modules(base).items() if len(shape) == 2}
    assert resemblance(sizes.items()) == ""
    one = next(name for name in sizes if name.endswith(("to_q", "to_out.0")))
    save_file(lora({one: sizes[one]}) | {"lora_unet_nowhere.alpha": torch.tensor(1.0)}, path)
    found = diagnose(path)
    assert not found.complete and "family" not in {finding.code for finding in found.findings}


def test_names_without_evidence_are_not_guessed_at(tmp_path: Path) -> None:
    for sizes in (
        {"some.layer": (8, 8)},
        {"transformer.transformer_blocks.0.attn1.to_q": (777, 777)},
        {"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072)},
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768)},
    ):
        assert resemblance(sizes.items()) == ""
    assert resemblance([("transformer.blocks.0.attn1.to_q", None)]) == ""
