"""diffusers' own loader, given the files that loracomp writes, arrives at the same updates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.loaded import loaded_updates
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.formats import load, save

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = (
    *ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "q_proj",
    "out_proj",
    "fc1",
)
DIT = (
    *ATTENTION,
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.2",
    "norm_out.linear",
    "q_proj",
    "out_proj",
)
# What diffusers reads right; kohya's SD3 files it drops in silence, and its FLUX sizes are built in.
WORKS = [
    ("sd15", "kohya", EVERYWHERE),
    ("sd15", "diffusers", EVERYWHERE),
    ("sd15", "diffusers-old", EVERYWHERE),
    ("sdxl", "kohya", EVERYWHERE),
    ("sdxl", "diffusers", EVERYWHERE),
    ("sdxl", "diffusers-old", EVERYWHERE),
    ("sd3", "diffusers", DIT),
    ("sd3", "diffusers-old", DIT),
    ("flux", "diffusers", (*DIT, "proj_mlp", "single_transformer_blocks.0.proj_out")),
    ("flux", "diffusers-old", DIT),
    ("flux", "comfyui", ("to_out.0", "ff.net.2", "q_proj", "out_proj")),
    (
        "flux",
        "kohya",
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "ff.net.2", "q_proj", "out_proj"),
    ),
]


@cache
def pipeline(kind: str) -> Any:
    return tiny_pipeline(kind)


@pytest.fixture
def unloaded(request: pytest.FixtureRequest) -> Iterator[Any]:
    pipe = pipeline(request.param)
    yield pipe
    pipe.unload_lora_weights()


def adapter_of(pipe: Any, kind: str, suffixes: tuple[str, ...]) -> Adapter:
    """Random updates whose alphas and ranks differ from layer to layer."""
    made = [
        random_adapter(layer_table(pipe), suffixes, rank, alpha, base=kind)
        for rank, alpha in ((4, 4.0), (2, 8.0), (3, 1.0))
    ]
    paths = list(made[0].layers)
    chosen = {path: made[index % 3].layers[path] for index, path in enumerate(paths)}
    return Adapter({path: layer for path, layer in chosen.items() if _once(path)}, kind, "tiny")


def _once(path: str) -> bool:
    # diffusers turns a rank pattern for the outer proj_out into one for every block's too.
    return path != "transformer.proj_out"


@pytest.mark.parametrize(("unloaded", "dialect", "suffixes"), WORKS, indirect=["unloaded"])
def test_diffusers_agrees(unloaded: Any, dialect: str, suffixes: tuple[str, ...], tmp_path: Path) -> None:
    kind = next(name for name in BASES if BASES[name].pipeline == type(unloaded).__name__ and name != "glyph")
    adapter = adapter_of(unloaded, kind, suffixes)
    table = layer_table(unloaded)
    path = save(adapter, tmp_path / "tiny.safetensors", dialect=dialect, modules=table)
    ours = load(path, base=kind, modules=table)
    assert set(ours.layers) == set(adapter.layers)
    unloaded.load_lora_weights(path)
    theirs = loaded_updates(unloaded)
    for layer_path, layer in adapter.layers.items():
        expected = layer.delta()
        assert (ours.layers[layer_path].delta() - expected).norm() <= 1e-6 * expected.norm(), layer_path
        assert (theirs[layer_path] - expected).norm() <= 1e-6 * expected.norm(), layer_path
    assert not any(bool(theirs[extra].any()) for extra in theirs.keys() - adapter.layers.keys())


@pytest.mark.parametrize("unloaded", ["sd15", "flux"], indirect=True)
def test_diffusers_own_files_are_read_right(unloaded: Any, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    component = "unet" if hasattr(unloaded, "unet") else "transformer"
    model, table = getattr(unloaded, component), layer_table(unloaded)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_v"], rank_pattern={"to_v": 2},
        alpha_pattern={"to_v": 1}, init_lora_weights=False,
    )  # fmt: skip
    model.add_adapter(config, "default")
    expected = loaded_updates(unloaded)
    options = {f"{component}_lora_adapter_metadata": config.to_dict()}
    unloaded.save_lora_weights(
        tmp_path,
        **{f"{component}_lora_layers": get_peft_model_state_dict(model, adapter_name="default")},
        **options,
    )
    model.delete_adapters("default")
    adapter = load(tmp_path / "pytorch_lora_weights.safetensors", modules=table)
    assert set(adapter.layers) == set(expected)
    for path, layer in adapter.layers.items():
        assert torch.allclose(layer.delta(), expected[path], rtol=1e-5, atol=1e-7), path
