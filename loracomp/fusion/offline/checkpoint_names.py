"""Under which names checkpoints of one file keep the weights of diffusers' layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loracomp.formats.names import layout
from loracomp.formats.native import Module, Piece, native, whole

_DENOISERS = ("model.diffusion_model.", "")
# Folders of the encoders in checkpoints of SD1.x, SDXL and SD3/FLUX, and whether OpenCLIP's names follow.
_ENCODERS = {
    "text_encoder": (
        ("cond_stage_model.transformer.", False),
        ("conditioner.embedders.0.transformer.", False),
        ("text_encoders.clip_l.transformer.", False),
    ),
    "text_encoder_2": (
        ("conditioner.embedders.1.model.", True),
        ("text_encoders.clip_g.transformer.", False),
        ("text_encoders.t5xxl.transformer.", False),
    ),
    "text_encoder_3": (("text_encoders.t5xxl.transformer.", False),),
}
_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj.weight",
    "mlp.fc1": "mlp.c_fc.weight",
    "mlp.fc2": "mlp.c_proj.weight",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Place:
    """A tensor of a checkpoint and the layers whose weights it holds."""

    key: str
    module: Module


def places(base: str) -> Iterator[Place]:
    """Every name that a weight of a base can have in a checkpoint of one file."""
    known = layout(base)
    for name, module in native(known.table, known.denoiser).items():
        for prefix in _DENOISERS:
            yield Place(f"{prefix}{name}.weight", module)
    for path, shape in known.table.items():
        component, _, inside = path.partition(".")
        for prefix, open_clip in _ENCODERS.get(component, ()):
            if open_clip:
                yield from _open_clip(prefix, component, inside, known.table)
            else:
                yield Place(f"{prefix}{inside}.weight", whole(path, shape))


def folder_places(component: str, paths: Mapping[str, tuple[int, ...]]) -> Iterator[Place]:
    """Names in the files of one component of a diffusers folder; encoders with and without ``text_model``."""
    for path, shape in paths.items():
        if path.startswith(f"{component}."):
            inside = path.removeprefix(f"{component}.")
            for name in dict.fromkeys((inside, inside.removeprefix("text_model."))):
                yield Place(f"{name}.weight", whole(path, shape))


def _open_clip(
    prefix: str, component: str, inside: str, table: Mapping[str, tuple[int, ...]]
) -> Iterator[Place]:
    """OpenCLIP's names: q, k and v of a layer are one matrix there."""
    found = _CLIP_LAYER.fullmatch(inside)
    if found is None:
        return
    stem, name = f"{prefix}transformer.resblocks.{found[1]}.", found[2]
    path = f"{component}.{inside}"
    if name in _OPEN_CLIP:
        yield Place(stem + _OPEN_CLIP[name], whole(path, table[path]))
    elif name == _FUSED[0]:
        yield Place(f"{stem}attn.in_proj_weight", _stacked(path, table))


def _stacked(path: str, table: Mapping[str, tuple[int, ...]]) -> Module:
    pieces, row = [], 0
    for name in _FUSED:
        part = path.replace(_FUSED[0], name)
        pieces.append(Piece(part, ((row, row + table[part][0]),)))
        row += table[part][0]
    return Module(tuple(pieces), (row, *table[path][1:]))
