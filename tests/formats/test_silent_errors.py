"""Where diffusers loads a file wrong and says nothing, or little: shown by running it, told by the doctor."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.loaded import loaded_updates
from safetensors.torch import load_file, save_file
from tiny import layer_table, random_adapter, tiny_pipeline

from loracomp.adapter import Adapter
from loracomp.formats import inspect, load, save
from loracomp.formats.checks import findings
from loracomp.lowrank import LowRank

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@cache
def pipeline(kind: str) -> Any:
    return tiny_pipeline(kind)


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Iterator[Any]:
    found = pipeline(request.param)
    yield found
    found.unload_lora_weights()


def theirs(pipe: Any, path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(path)
    return loaded_updates(pipe)


def told(path: Path, base: str, pipe: Any) -> set[str]:
    table = layer_table(tiny_pipeline(base))
    return {finding.code for finding in findings(inspect(path, base=base, modules=table))}


def wrong(found: dict[str, torch.Tensor], adapter: Adapter) -> list[str]:
    """Layers whose update is missing or differs from the adapter's by more than rounding."""
    return [
        path
        for path, layer in adapter.layers.items()
        if path not in found or not torch.allclose(found[path], layer.delta(), rtol=1e-4, atol=1e-6)
    ]


@pytest.mark.parametrize("pipe", ["sd3"], indirect=True)
def test_nothing_of_a_kohya_file_for_sd3_is_loaded(pipe: Any, tmp_path: Path) -> None:
    table = layer_table(pipe)
    adapter = random_adapter(table, ATTENTION, base="sd3")
    path = save(adapter, tmp_path / "a.safetensors", dialect="kohya", modules=table)
    assert not theirs(pipe, path) and pipe.get_list_adapters() == {}
    assert "diffusers-sd3" in told(path, "sd3", pipe)
    assert load(path, base="sd3", modules=table).layers.keys() == adapter.layers.keys()


@pytest.mark.parametrize("pipe", ["sd15"], indirect=True)
def test_attention_of_a_kohya_file_with_several_alphas_gets_a_wrong_strength(
    pipe: Any, tmp_path: Path
) -> None:
    table = layer_table(pipe)
    adapter = random_adapter(table, ATTENTION, alpha=4.0, base="sd15")
    path = save(adapter, tmp_path / "a.safetensors", dialect="kohya", modules=table)
    tensors = load_file(path)
    keys = [key for key in tensors if key.endswith(".alpha")]
    save_file(tensors | {key: torch.tensor(8.0) for key in keys[::3]}, path)
    mixed = load(path, base="sd15", modules=table)
    assert len(wrong(theirs(pipe, path), mixed)) >= len(keys[::3])
    assert "diffusers-mixed-alpha" in told(path, "sd15", pipe)
    pipe.unload_lora_weights()
    mended = save(mixed, tmp_path / "b.safetensors", dialect="kohya", modules=table)
    assert wrong(theirs(pipe, mended), mixed) == []
    assert "diffusers-mixed-alpha" not in told(mended, "sd15", pipe)


@pytest.mark.parametrize("pipe", ["flux"], indirect=True)
def test_layers_outside_the_blocks_of_a_kohya_file_for_flux_are_dropped(pipe: Any, tmp_path: Path) -> None:
    table = layer_table(pipe)
    adapter = random_adapter(table, ("to_out.0", "x_embedder", "norm_out.linear"), base="flux")
    path = save(adapter, tmp_path / "a.safetensors", dialect="kohya", modules=table)
    assert wrong(theirs(pipe, path), adapter) == ["transformer.norm_out.linear", "transformer.x_embedder"]
    assert "diffusers-flux-outside" in told(path, "flux", pipe)


@pytest.mark.parametrize("pipe", ["flux"], indirect=True)
def test_a_stripped_header_changes_the_strength(pipe: Any, tmp_path: Path) -> None:
    table = layer_table(pipe)
    adapter = random_adapter(table, ATTENTION, rank=4, alpha=8.0, base="flux")
    tensors = {}
    for name, layer in adapter.layers.items():
        tensors |= {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
    targets = [name.removeprefix("transformer.") for name in adapter.layers]
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.target_modules": targets}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    assert wrong(theirs(pipe, path), adapter) == []
    assert "header-alpha" in told(path, "flux", pipe)
    pipe.unload_lora_weights()
    save_file(tensors, path, {"format": "pt"})
    assert len(wrong(theirs(pipe, path), adapter)) == len(adapter.layers)
    assert "no-alpha" in told(path, "flux", pipe)
    pipe.unload_lora_weights()
    mended = save(adapter, tmp_path / "b.safetensors", modules=table)
    save_file(load_file(mended), mended, {"format": "pt"})
    assert wrong(theirs(pipe, mended), adapter) == []


@pytest.mark.parametrize("pipe", ["sd15"], indirect=True)
def test_other_algebras_are_refused_by_diffusers_and_converted_by_us(pipe: Any, tmp_path: Path) -> None:
    table = layer_table(pipe)
    path, name = tmp_path / "a.safetensors", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
    side = table[name][0]
    hada = {f"hada_w{i}_{x}": torch.randn((side, 2) if x == "a" else (2, side)) for i in (1, 2) for x in "ab"}
    kron = {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(side // 2, side // 2)}
    for parts in (hada, kron):
        save_file({f"{flat}.{part}": values for part, values in parts.items()}, path)
        with pytest.raises(ValueError, match="renamed"):
            theirs(pipe, path)
        assert "diffusers-algebra" in told(path, "sd15", pipe)
        adapter = load(path, base="sd15", modules=table)
        mended = save(adapter, tmp_path / "b.safetensors", modules=table)
        assert wrong(theirs(pipe, mended), adapter) == []
        pipe.unload_lora_weights()


@pytest.mark.parametrize("pipe", ["sd15"], indirect=True)
def test_magnitudes_of_kohya_files_are_dropped(pipe: Any, tmp_path: Path) -> None:
    table = layer_table(pipe)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
    weight = pipe.unet.get_submodule(name.removeprefix("unet.")).weight.detach().clone()
    layer = LowRank(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2) * 0.1)
    path = save(
        Adapter({name: layer}, "sd15", "a"), tmp_path / "a.safetensors", dialect="kohya", modules=table
    )
    scale = weight.norm(dim=1, keepdim=True) * 1.5
    save_file(load_file(path) | {f"{flat}.dora_scale": scale}, path)
    dora = load(path, base="sd15", modules=table, weights=lambda _: weight)
    found = theirs(pipe, path)
    assert wrong(found, dora) == [name] and torch.allclose(found[name], layer.delta(), atol=1e-6)
    assert "diffusers-dora" in told(path, "sd15", pipe)
    pipe.unload_lora_weights()
    mended = save(dora, tmp_path / "b.safetensors", dialect="kohya", modules=table)
    assert wrong(theirs(pipe, mended), dora) == []


@pytest.mark.parametrize("pipe", ["sd15", "flux"], indirect=True)
def test_text_attention_of_a_kohya_file_without_out_proj_is_dropped(pipe: Any, tmp_path: Path) -> None:
    kind = "sd15" if hasattr(pipe, "unet") else "flux"
    table, path = layer_table(pipe), tmp_path / "a.safetensors"
    layers = random_adapter(table, ("q_proj", "k_proj", "v_proj", "out_proj", "fc1"), base=kind).layers
    layers = {path: layer for path, layer in layers.items() if path.startswith("text_encoder.")}

    def of(*suffixes: str) -> Adapter:
        return Adapter({p: layer for p, layer in layers.items() if p.endswith(suffixes)}, kind, "a")

    for whole in (("q_proj", "out_proj"), ("fc1",)):
        save(of(*whole), path, dialect="kohya", modules=table)
        assert wrong(theirs(pipe, path), of(*whole)) == []
        assert "diffusers-text-encoder" not in told(path, kind, pipe)
        pipe.unload_lora_weights()
    save(of("q_proj", "v_proj", "fc1"), path, dialect="kohya", modules=table)
    assert wrong(theirs(pipe, path), of("q_proj", "v_proj", "fc1")) == list(of("q_proj", "v_proj").layers)
    assert "diffusers-text-encoder" in told(path, kind, pipe)
    pipe.unload_lora_weights()
    save(of("q_proj"), path, dialect="kohya", modules=table)
    with pytest.raises(ValueError, match="infer state dict type"):
        theirs(pipe, path)
    assert "diffusers-text-encoder" in told(path, kind, pipe)
    pipe.unload_lora_weights()
    mended = save(of("q_proj", "v_proj", "fc1"), path, dialect="diffusers", modules=table)
    assert wrong(theirs(pipe, mended), of("q_proj", "v_proj", "fc1")) == []
    assert "diffusers-text-encoder" not in told(mended, kind, pipe)


@pytest.mark.parametrize("pipe", ["sd15"], indirect=True)
def test_text_encoders_without_attention_are_refused_in_the_new_dialect(pipe: Any, tmp_path: Path) -> None:
    table, path = layer_table(pipe), tmp_path / "a.safetensors"
    adapter = random_adapter(table, ("fc1", "fc2"), base="sd15")
    save(adapter, path, dialect="diffusers", modules=table)
    with pytest.raises(ValueError, match="infer state dict type"):
        theirs(pipe, path)
    assert "diffusers-text-encoder" in told(path, "sd15", pipe)
    pipe.unload_lora_weights()
    save(adapter, path, dialect="diffusers-old", modules=table)
    assert wrong(theirs(pipe, path), adapter) == []
    assert "diffusers-text-encoder" not in told(path, "sd15", pipe)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
@pytest.mark.parametrize("pipe", ["flux"], indirect=True)
def test_original_names_of_flux_with_peft_suffixes_are_dropped(
    pipe: Any, prefix: str, alpha: bool, tmp_path: Path
) -> None:
    table, path = layer_table(pipe), tmp_path / "a.safetensors"
    adapter = random_adapter(table, ATTENTION, alpha=4.0, base="flux")
    save(adapter, path, dialect="comfyui", modules=table)
    renamed = {
        key.replace("diffusion_model.", prefix).replace("lora_down", "lora_A").replace("lora_up", "lora_B"): (
            v / 2 if key.endswith(".alpha") else v
        )
        for key, v in load_file(path).items()
        if alpha or not key.endswith(".alpha")
    }
    save_file(renamed, path)
    assert theirs(pipe, path) == {}
    assert "diffusers-flux-original" in told(path, "flux", pipe)
    scale = 2.0 if alpha else 1.0
    again = load(path, base="flux", modules=table).layers
    assert again.keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        assert torch.allclose(again[name].delta() * scale, layer.delta(), rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("pipe", ["sd15", "sdxl", "sd3"], indirect=True)
def test_names_of_comfyui_are_refused(pipe: Any, tmp_path: Path) -> None:
    kind = "sd3" if hasattr(pipe, "transformer") else "sdxl" if hasattr(pipe, "text_encoder_2") else "sd15"
    table, path = layer_table(pipe), tmp_path / "a.safetensors"
    adapter = random_adapter(table, ATTENTION, base=kind)
    save(adapter, path, dialect="comfyui", modules=table)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        theirs(pipe, path)
    assert "comfyui-alone" in told(path, kind, pipe)
