"""Seeds and mutations for fuzzing the reader: whole files of a tiny base, bent byte- and structure-wise."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from loracomp.errors import LoracompError
from loracomp.formats import Limits, inspect, load
from loracomp.formats.checks import findings

CORPUS = Path(__file__).parent / "corpus"
BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
UNET = {
    f"{BLOCK}.attn1.to_q": (8, 6),
    f"{BLOCK}.attn1.to_out.0": (6, 8),
    "unet.down_blocks.0.resnets.0.conv1": (8, 4, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (4, 4),
}
DIT = {
    "transformer.single_transformer_blocks.0.norm.linear": (12, 4),
    "transformer.single_transformer_blocks.0.attn.to_q": (4, 4),
    "transformer.single_transformer_blocks.0.attn.to_k": (4, 4),
    "transformer.single_transformer_blocks.0.attn.to_v": (4, 4),
    "transformer.single_transformer_blocks.0.proj_mlp": (16, 4),
    "transformer.single_transformer_blocks.0.proj_out": (4, 20),
    "transformer.norm_out.linear": (8, 4),
}
LIMITS = Limits(file_bytes=1 << 20, header_bytes=1 << 18, tensors=2000, rank=64)
_LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
_CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
_PARTS: dict[str, dict[str, tuple[int, ...]]] = {
    "kohya": {
        f"{_LINEAR}.lora_down.weight": (2, 6),
        f"{_LINEAR}.lora_up.weight": (8, 2),
        f"{_LINEAR}.alpha": (),
        f"{_CONV}.lora_down.weight": (2, 4, 3, 3),
        f"{_CONV}.lora_up.weight": (8, 2, 1, 1),
    },
    "tucker": {
        f"{_CONV}.lora_down.weight": (2, 4, 1, 1),
        f"{_CONV}.lora_mid.weight": (2, 2, 3, 3),
        f"{_CONV}.lora_up.weight": (8, 2, 1, 1),
    },
    "dora": {
        f"{_LINEAR}.lora_down.weight": (2, 6),
        f"{_LINEAR}.lora_up.weight": (8, 2),
        f"{_LINEAR}.dora_scale": (8, 1),
    },
    "loha": {
        **{f"{_LINEAR}.hada_w{i}_a": (8, 2) for i in (1, 2)},
        **{f"{_LINEAR}.hada_w{i}_b": (2, 6) for i in (1, 2)},
    },
    "loha-tucker": {
        **{f"{_CONV}.hada_w{i}_a": (2, 8) for i in (1, 2)},
        **{f"{_CONV}.hada_w{i}_b": (2, 4) for i in (1, 2)},
        **{f"{_CONV}.hada_t{i}": (2, 2, 3, 3) for i in (1, 2)},
    },
    "lokr": {f"{_LINEAR}.lokr_w1": (2, 2), f"{_LINEAR}.lokr_w2_a": (4, 1), f"{_LINEAR}.lokr_w2_b": (1, 3)},
    "lokr-tucker": {
        f"{_CONV}.lokr_w1": (2, 2),
        f"{_CONV}.lokr_w2_a": (1, 4),
        f"{_CONV}.lokr_w2_b": (1, 2),
        f"{_CONV}.lokr_t2": (1, 1, 3, 3),
    },
    "diff": {f"{_CONV}.diff": (8, 4, 3, 3), f"{_CONV}.diff_b": (8,)},
    "peft": {
        f"base_model.model.{BLOCK}.attn1.to_out.0.lora_A.default.weight": (2, 8),
        f"base_model.model.{BLOCK}.attn1.to_out.0.lora_B.default.weight": (6, 2),
    },
    "old": {
        f"{BLOCK}.attn1.processor.to_q_lora.down.weight": (2, 6),
        f"{BLOCK}.attn1.processor.to_q_lora.up.weight": (8, 2),
    },
    "text": {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (1, 4),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (4, 1),
    },
    "flux": {
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 4),
        "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": (4, 2),
    },
    "kohya-flux": {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": (4, 4),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": (28, 4),
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": (1, 4),
        "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": (8, 1),
    },
    "xlabs": {
        "single_blocks.0.processor.qkv_lora.down.weight": (2, 4),
        "single_blocks.0.processor.qkv_lora.up.weight": (12, 2),
    },
}
_METADATA = {
    "ss_base_model_version": "sd_v1",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True}),
    "ss_tag_frequency": "{}",
}
_NUMBERS: tuple[Any, ...] = (
    0,
    1,
    2,
    3,
    4,
    6,
    8,
    9,
    64,
    255,
    2**31,
    2**62,
    2**63,
    2**64,
    -1,
    1.5,
    True,
    None,
    "1",
    [],
)
_WORDS = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "", 3, None)
_ROLES = [*sorted({name.rsplit(".", 2)[-1] for part in _PARTS.values() for name in part}), "alpha", "w_norm"]


def seeds() -> Iterator[tuple[str, bytes]]:
    """A whole file of every algebra and dialect on the tiny base."""
    for name, shapes in _PARTS.items():
        generator = torch.Generator().manual_seed(len(name))
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        yield name, save(tensors, _METADATA)


def container(header: Any, data: bytes) -> bytes:
    """A file of a header, which may be any JSON value, and data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutated(data: bytes, chance: random.Random, size: int = 1 << 16) -> bytes:
    """A mutation of a file: of its bytes, or of what its header says."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = _structure(data, chance) if chance.random() < 0.75 else _bytes(data, chance)
    return data[:size]


def _bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(out) + 1)
        match chance.randrange(5):
            case 0:
                out[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del out[place : place + chance.choice((1, 4, 64))]
            case 2:
                out[place:place] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 4))))
            case 3:
                out[:8] = struct.pack("<Q", chance.choice((0, 1, 8, len(out), 2**32, 2**63, 2**64 - 1)))
            case _:
                out[place : place + 4] = struct.pack(
                    "<f", chance.choice((float("nan"), float("inf"), 1e38, 1e-40))
                )
    return bytes(out)


def _structure(data: bytes, chance: random.Random) -> bytes:
    try:
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        names = [name for name in header if name != "__metadata__"]
        name = chance.choice(names)
        entry = header[name]
        match chance.randrange(8):
            case 0:
                entry["shape"][chance.randrange(len(entry["shape"]))] = chance.choice(_NUMBERS)
            case 1:
                entry["dtype"] = chance.choice(_WORDS)
            case 2:
                entry["data_offsets"][chance.randrange(2)] = chance.choice(_NUMBERS)
            case 3:
                header[name.rpartition(".")[0] + "." + chance.choice(_ROLES)] = header.pop(name)
            case 4:
                return _reshaped(header, names, name, chance)
            case 5:
                del header[name]
                return _packed(header, chance)
            case 6:
                other = chance.choice(names)
                header[name], header[other] = header[other], entry
            case _:
                header.setdefault("__metadata__", {})[chance.choice((*_METADATA, "x"))] = chance.choice(
                    (
                        "",
                        "{",
                        "[" * 2000,
                        '{"unet.lora_alpha": 1e999}',
                        '{"alpha_pattern": {"(a+)+$": 1}}',
                        1,
                        None,
                    )
                )
        return container(header, body)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return _bytes(data, chance)


def _reshaped(header: Any, names: list[str], name: str, chance: random.Random) -> bytes:
    """Another shape for a tensor, the rest of the file in order: it passes the gate and meets the algebra."""
    axes = chance.choice((0, 1, 2, 2, 2, 4, 4))
    header[name]["shape"] = [chance.choice((0, 1, 2, 3, 4, 6, 8)) for _ in range(axes)]
    return _packed(header, chance)


def _packed(header: Any, chance: random.Random) -> bytes:
    """A file with right offsets for the shapes of a header, values drawn anew."""
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
    position = 0
    for entry in (header[name] for name in header if name != "__metadata__"):
        sides = [side for side in entry["shape"] if type(side) is int]
        count = prod(sides) * sizes.get(entry["dtype"], 4)
        if not 0 <= count <= 1 << 14:
            count = 0
        entry["data_offsets"] = [position, position + count]
        position += count
    return container(
        header, chance.randbytes(position) if chance.random() < 0.3 else b"\0\0\x80\x3f" * (position // 4 + 1)
    )


class Reader:
    """Feeds inputs to the reader through a file in memory; anything but a refusal is let out."""

    def __init__(self) -> None:
        self.handle = os.memfd_create("fuzz") if hasattr(os, "memfd_create") else None
        self.path = f"/proc/self/fd/{self.handle}"
        self.read = self.refused = 0
        self.slowest = 0.0

    def feed(self, data: bytes) -> None:
        """Reads one input in every way; raises whatever is no :class:`LoracompError`."""
        assert self.handle is not None
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, data, 0)
        start = time.process_time()
        try:
            table = DIT if b"single_" in data else UNET
            report = inspect(self.path, modules=table, limits=LIMITS)
            findings(report)
            json.dumps(report.to_dict(), allow_nan=False)
            load(self.path, modules=table, allow_partial=True, limits=LIMITS)
            self.read += 1
        except LoracompError as error:
            if "\n" in str(error):
                raise AssertionError("a refusal of several lines") from error
            self.refused += 1
        self.slowest = max(self.slowest, time.process_time() - start)
