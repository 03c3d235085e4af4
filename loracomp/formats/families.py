"""Families of models that loracomp has no table of, told by the names and sizes of a file's modules.

Names are those of diffusers' classes, of their original code, and of both as kohya's trainers flatten
them. A family is named only where its names, or their widths or numbers of blocks, are no other's:
Chroma's blocks, for one, are FLUX.1's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loracomp.formats.gate import printable

Size = tuple[int, int] | None
_LOOKED_AT = 4096
_DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
_FLAT = ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_")
_ATTENTION = r"(to_q|to_k|to_v|to_out_0)"
_JOINT = (
    r"(attn_(to_q|to_k|to_v|to_out_0|to_add_out|add_[qkv]_proj)|(img|txt)_attn_(qkv|proj)"
    r"|(x|context)_block_attn_(qkv|proj))"
)
_DOUBLE = rf"(?:transformer|double|joint)_blocks_(\d+)_{_JOINT}"


@dataclass(frozen=True)
class Family:
    """One mark of a family.

    Attributes:
        name: What people call it.
        pattern: Of module names with underscores, without their prefix; its first group, where
            ``last`` is given, is the block's index.
        columns: Input widths of such modules, any where empty.
        last: Smallest and largest index that the last block in the file may have.
    """

    name: str
    pattern: str
    columns: frozenset[int] = frozenset()
    last: tuple[int, int] | None = None

    def members(self, modules: Sequence[tuple[str, Size]]) -> list[int]:
        """Positions of the modules that bear this mark; none where it does not tell the family."""
        named = [
            (i, found) for i, (name, _) in enumerate(modules) if (found := re.fullmatch(self.pattern, name))
        ]
        fitting = [(i, found) for i, found in named if self._wide(modules[i][1])]
        if not fitting or 2 * len(fitting) < len(named):
            return []
        if self.last and not self.last[0] <= max(int(found[1]) for _, found in fitting) <= self.last[1]:
            return []
        return [i for i, _ in fitting]

    def _wide(self, size: Size) -> bool:
        return not self.columns or (size is not None and size[1] in self.columns)


def _widths(*columns: int) -> frozenset[int]:
    return frozenset(columns)


_DIT = rf"transformer_blocks_\d+_attn[12]_{_ATTENTION}"
_LAYERS = r"(layers|noise_refiner|context_refiner)_\d+_(attn|attention)_(qkv|out|to_q|to_k|to_v|to_out_0)"
# Where two marks fit as many modules, the first counts.
FAMILIES = (
    Family(
        "Wan 2.1 or 2.2", r"blocks_\d+_(self|cross)_attn_(q|k|v|o|k_img|v_img)", _widths(1536, 3072, 5120)
    ),
    Family(
        "Wan 2.1 or 2.2",
        r"blocks_\d+_attn[12]_(to_q|to_k|to_v|to_out_0|add_[kv]_proj)",
        _widths(1536, 3072, 5120),
    ),
    Family("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp_net_0_proj|mlp_net_2|mod_1)"),
    Family("Qwen-Image", _DOUBLE, _widths(3072), (20, 59)),
    Family("HunyuanVideo", r"double_blocks_\d+_(img|txt)_mlp_fc[12]", _widths(3072, 12288)),
    Family("HunyuanVideo", _DOUBLE, _widths(3072), (19, 19)),
    Family(
        "HunyuanVideo",
        r"single_(?:transformer_)?blocks_(\d+)_(attn_to_[qkv]|proj_mlp|linear1)",
        _widths(3072),
        (38, 39),
    ),
    Family("HunyuanImage 2.1", _DOUBLE, _widths(3584)),
    Family("Hunyuan-DiT", rf"blocks_\d+_attn[12]_({_ATTENTION}|Wqkv|q_proj|kv_proj|out_proj)", _widths(1408)),
    Family("Stable Diffusion 3.5 large", _DOUBLE, _widths(2432)),
    Family("FLUX.2", r"single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out)"),
    Family("FLUX.2", r"(double_stream|single_stream)_modulation(_img|_txt)?_lin(ear)?"),
    Family("FLUX.2 dev", _DOUBLE, _widths(6144)),
    Family("Chroma", r"distilled_guidance_layer_.+"),
    Family("AuraFlow", r"joint_transformer_blocks_\d+_.+"),
    Family("AuraFlow", r"(double|single)_layers_\d+_attn_w[12]?[qkvo]"),
    Family("Lumina-Image 2", _LAYERS, _widths(2304)),
    Family("Z-Image", _LAYERS, _widths(3840)),
    Family("Sana", r"transformer_blocks_\d+_ff_conv_(inverted|point)"),
    Family("Sana 1.6B", _DIT, _widths(2240)),
    Family("PixArt or Sana 0.6B", _DIT, _widths(1152)),
    Family("PixArt", r"blocks_\d+_cross_attn_(q_linear|kv_linear)", _widths(1152)),
    Family("Mochi", r"transformer_blocks_\d+_attn1_(add_[qkv]_proj|to_add_out)"),
    Family("CogVideoX 2B", rf"transformer_blocks_\d+_attn1_{_ATTENTION}", _widths(1920)),
    Family("CogVideoX 5B or Mochi", rf"transformer_blocks_\d+_attn1_{_ATTENTION}", _widths(3072)),
    Family("CogView4", rf"transformer_blocks_\d+_attn1_{_ATTENTION}", _widths(2560)),
    Family("LTX-2", r"transformer_blocks_\d+_(audio_attn[12]|audio_to_video_attn|video_to_audio_attn)_.+"),
    Family("LTX-Video", _DIT, _widths(2048)),
    Family("LTX-Video 13B, LTX-2 or Cosmos 1", _DIT, _widths(4096)),
    Family("Cosmos Predict 2 or Anima", r"blocks_\d+_(self|cross)_attn_(q|k|v|output)_proj"),
    Family("HiDream-I1", r"(double|single)_stream_blocks_\d+_.+"),
    Family("Kandinsky 5", r"(text|visual)_transformer_blocks_\d+_(self|cross)_attention_.+"),
    Family("Stable Cascade", rf"(down|up)_blocks_\d+_\d+_attention(_attn)?_({_ATTENTION}|in_proj|out_proj)"),
    Family(
        "Stable Diffusion 2",
        r"((down|up|input|output)_blocks|mid_block|middle_block)_.+_attn2_to_[kv]",
        _widths(1024),
    ),
    Family("Kolors", r"encoder_hid_proj"),
    Family("a language model", r"(model_)?layers_\d+_(self_attn_[qkvo]_proj|mlp_(gate|up|down)_proj)"),
)


def resemblance(modules: Iterable[tuple[str, Size]]) -> str:
    """The family that a file looks made for and what says so; empty where nothing does.

    Args:
        modules: Names as they stand in the file, and rows and columns where they are known.
    """
    there = [item for item, _ in zip(modules, range(_LOOKED_AT), strict=False)]
    plain = [(_plain(name), size) for name, size in there]
    best, bearing = max(
        ((family, family.members(plain)) for family in FAMILIES), key=lambda item: len(item[1])
    )
    if not bearing:
        return ""
    name, size = there[bearing[0]]
    wide = f" with {size[1]} columns" if best.columns and size else ""
    counted = f" and {max(_index(best, plain[i][0]) for i in bearing) + 1} blocks" if best.last else ""
    return f"{best.name} ({len(bearing)} of {len(there)} modules are like {printable(name)!r}{wide}{counted})"


def _index(family: Family, name: str) -> int:
    found = re.fullmatch(family.pattern, name)
    return int(found[1]) if found else 0


def _plain(name: str) -> str:
    for prefix in _DOTTED:
        name = name.removeprefix(prefix)
    name = name.replace(".", "_")
    for prefix in _FLAT:
        name = name.removeprefix(prefix)
    return name
