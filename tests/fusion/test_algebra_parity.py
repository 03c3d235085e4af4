"""LoHa, LoKr, full differences and DoRA through the stacked layer: as if added to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from predictions import relative
from safetensors.torch import save_file
from tiny import layer_table, run, tiny_pipeline
from torch import Tensor

from loracomp.formats import load
from loracomp.formats.reading import ERROR_KEY
from loracomp.pipeline import attach, layers_of, weights_of

SUFFIXES = ("attn1.to_q", "attn2.to_v", "ff.net.2", "conv1")
RANK, ALPHA = 2, 1.0


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def loha(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    rows, columns = weight.flatten(1).shape
    a, b, c, d = normal(rows, RANK), normal(RANK, columns), normal(rows, RANK), normal(RANK, columns)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(ALPHA)}
    return parts, (a @ b) * (c @ d) * ALPHA / RANK


def lokr(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    rows, columns = weight.flatten(1).shape
    left, up, down = normal(4, 2), normal(rows // 4, RANK), normal(RANK, columns // 2)
    parts = {"lokr_w1": left, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(ALPHA)}
    return parts, torch.kron(left, up @ down) * ALPHA / RANK


def difference(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    values = normal(*weight.shape) * 0.1
    return {"diff": values}, values.flatten(1)


def dora(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    flat = weight.flatten(1)
    up, down = normal(len(flat), RANK), normal(RANK, flat.shape[1])
    magnitude = flat.norm(dim=1) * (1 + 0.2 * torch.rand(len(flat)))
    moved = flat + up @ down * ALPHA / RANK
    turned = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    tail = (1,) * (weight.ndim - 2)
    parts = {
        "lora_up.weight": up.reshape(*up.shape, *tail),
        "lora_down.weight": down.reshape(RANK, *weight.shape[1:]),
        "dora_scale": magnitude.reshape(-1, 1, *tail),
        "alpha": torch.tensor(ALPHA),
    }
    return parts, turned - flat


@pytest.mark.parametrize("algebra", [loha, lokr, difference, dora])
def test_a_file_acts_as_its_difference_of_weights(algebra: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe: Any = tiny_pipeline("sd15")
    layers: dict[str, Any] = {**layers_of(pipe)}
    state: dict[str, Tensor] = {}
    updates: dict[str, Tensor] = {}
    for path in layers:
        if path.startswith("unet.") and path.endswith(SUFFIXES):
            # Kronecker factors cover whole convolution kernels only where the input is divisible.
            parts, delta = algebra(layers[path].weight.detach())
            name = "lora_unet_" + path.removeprefix("unet.").replace(".", "_")
            state |= {f"{name}.{role}": value.contiguous() for role, value in parts.items()}
            updates[path] = delta.reshape(layers[path].weight.shape)
    save_file(state, tmp_path / "odd.safetensors")
    adapter = load(tmp_path / "odd.safetensors", modules=layer_table(pipe), weights=weights_of(pipe))
    assert float(adapter.metadata.get(ERROR_KEY, 0)) < 1e-5
    with attach(pipe, [adapter], weights=[0.6]):
        ours = run(pipe)
    for path, delta in updates.items():
        layers[path].weight.data += 0.6 * delta
    assert relative(ours, run(pipe)) < 1e-5
