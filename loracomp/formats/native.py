"""Names of layers in the bases' original code, generated from the table of their diffusers names.

Trainers of the kohya family and ComfyUI keep the original names and fuse what diffusers splits
(q, k and v of one attention are one matrix there). A :class:`Piece` says which rows of the fused
matrix are which diffusers layer, so reading and writing are exact inverses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]
Table = Mapping[str, Shape]
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """One diffusers layer inside a file's module: its path, and its output rows in order."""

    path: str
    rows: Rows


@dataclass(frozen=True)
class Module:
    """A module as a file has it: the layers it is made of, and its weight's shape."""

    pieces: tuple[Piece, ...]
    shape: Shape


QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_IMAGE_MLP = ("ff.net.0.proj", "ff.net.2")
_TEXT_MLP = ("ff_context.net.0.proj", "ff_context.net.2")
# Block templates: native name inside the block, then the diffusers layers it is made of.
FLUX_DOUBLE = {
    "img_attn.qkv": QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": _IMAGE_MLP[:1],
    "img_mlp.2": _IMAGE_MLP[1:],
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ADDED_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": _TEXT_MLP[:1],
    "txt_mlp.2": _TEXT_MLP[1:],
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": (*QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
XLABS_DOUBLE = {
    "processor.qkv_lora1": QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": ADDED_QKV,
    "processor.proj_lora2": ("attn.to_add_out",),
}
XLABS_SINGLE = {"processor.qkv_lora": QKV, "processor.proj_lora": ("proj_out",)}
MMDIT_BLOCK = {
    "x_block.attn.qkv": QKV,
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": _IMAGE_MLP[:1],
    "x_block.mlp.fc2": _IMAGE_MLP[1:],
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ADDED_QKV,
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": _TEXT_MLP[:1],
    "context_block.mlp.fc2": _TEXT_MLP[1:],
}
MMDIT_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def whole(path: str, shape: Shape) -> Module:
    """A module that is one layer."""
    return Module((Piece(path, ((0, shape[0]),)),), shape)


def family(table: Table, denoiser: str) -> str:
    """Which original code a denoiser has: ``sgm`` (UNets), ``flux`` or ``mmdit``."""
    if denoiser == "unet":
        return "sgm"
    return "flux" if f"{denoiser}.single_transformer_blocks.0.norm.linear" in table else "mmdit"


def native(table: Table, denoiser: str) -> dict[str, Module]:
    """Modules of the denoiser by original name: SGM for a UNet, else FLUX or MMDiT."""
    code = family(table, denoiser)
    if code == "sgm":
        return dict(_sgm(table))
    return dict((_flux if code == "flux" else _mmdit)(table, denoiser))


def xlabs(table: Table, denoiser: str) -> dict[str, Module]:
    """Modules of a FLUX transformer by the names of XLabs' attention processors."""
    double = _blocks(table, f"{denoiser}.transformer_blocks", "double_blocks", XLABS_DOUBLE)
    single = _blocks(table, f"{denoiser}.single_transformer_blocks", "single_blocks", XLABS_SINGLE)
    return {**dict(double), **dict(single)}


def _flux(table: Table, denoiser: str) -> Iterator[tuple[str, Module]]:
    yield from _blocks(table, f"{denoiser}.transformer_blocks", "double_blocks", FLUX_DOUBLE)
    yield from _blocks(table, f"{denoiser}.single_transformer_blocks", "single_blocks", FLUX_SINGLE)
    yield from _outside(table, denoiser, FLUX_OUTSIDE)


def _mmdit(table: Table, denoiser: str) -> Iterator[tuple[str, Module]]:
    yield from _blocks(table, f"{denoiser}.transformer_blocks", "joint_blocks", MMDIT_BLOCK)
    yield from _outside(table, denoiser, MMDIT_OUTSIDE)
    for path in [p for p in table if p.endswith(".norm1_context.linear")]:
        index = path.split(".")[-3]
        last = path.replace(f".{index}.", f".{int(index) + 1}.") not in table
        # The last block's context norm has scale and shift only, which diffusers keeps in the other order.
        make = _swapped if last else whole
        yield f"joint_blocks.{index}.context_block.adaLN_modulation.1", make(path, table[path])


def _blocks(
    table: Table, ours: str, theirs: str, parts: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Module]]:
    count = len({path[len(ours) + 1 :].split(".")[0] for path in table if path.startswith(f"{ours}.")})
    for index in range(count):
        for name, layers in parts.items():
            paths = [f"{ours}.{index}.{layer}" for layer in layers]
            if all(path in table for path in paths):
                yield f"{theirs}.{index}.{name}", _fused(paths, table)


def _fused(paths: list[str], table: Table) -> Module:
    pieces, row = [], 0
    for path in paths:
        pieces.append(Piece(path, ((row, row + table[path][0]),)))
        row += table[path][0]
    return Module(tuple(pieces), (row, *table[paths[0]][1:]))


def _swapped(path: str, shape: Shape) -> Module:
    half = shape[0] // 2
    return Module((Piece(path, ((half, shape[0]), (0, half))),), shape)


def _outside(table: Table, denoiser: str, names: Mapping[str, str]) -> Iterator[tuple[str, Module]]:
    for theirs, ours in names.items():
        path = f"{denoiser}.{ours}"
        if path in table:
            yield theirs, whole(path, table[path])
    norm = f"{denoiser}.norm_out.linear"
    if norm in table:
        yield "final_layer.adaLN_modulation.1", _swapped(norm, table[norm])


_SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _sgm(table: Table) -> Iterator[tuple[str, Module]]:
    """UNet names of the original latent-diffusion code, where blocks are counted through."""
    per_block = len({p.split(".")[4] for p in table if p.startswith("unet.down_blocks.0.resnets.")})
    attended = {p.split(".")[2] for p in table if p.startswith("unet.up_blocks.") and ".attentions." in p}
    for path, shape in table.items():
        component, _, inside = path.partition(".")
        if component == "unet" and (name := _sgm_name(inside, per_block, attended)):
            yield name, whole(path, shape)


def _sgm_name(inside: str, per_block: int, attended: set[str]) -> str | None:
    if inside in _SGM_OUTSIDE:
        return _SGM_OUTSIDE[inside]
    parts = inside.split(".")
    if parts[0] == "mid_block":
        place = f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}"
        return _sgm_layer(place, parts[1], parts[3:])
    if parts[0] not in ("down_blocks", "up_blocks"):
        return None
    block, kind, layer = int(parts[1]), parts[2], int(parts[3])
    down = parts[0] == "down_blocks"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (per_block + 1)}.0.op"
    if kind == "upsamplers":
        inner = 2 if parts[1] in attended else 1
        return f"output_blocks.{block * (per_block + 1) + per_block}.{inner}.conv"
    count = block * (per_block + 1) + layer + (1 if down else 0)
    place = f"{'input' if down else 'output'}_blocks.{count}.{1 if kind == 'attentions' else 0}"
    return _sgm_layer(place, kind, parts[4:])


def _sgm_layer(place: str, kind: str, rest: list[str]) -> str:
    inner = ".".join(rest)
    return f"{place}.{_SGM_RESNET[inner] if kind == 'resnets' else inner}"
