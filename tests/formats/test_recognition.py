"""Bases and dialects are recognised from tensors; misfits, gaps and damage are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_adapter, shapes_of

from loracomp.adapter import Adapter
from loracomp.bases import BASES, modules
from loracomp.errors import BaseMismatchError, FormatError, PartialLoadError
from loracomp.formats import inspect, load, save
from loracomp.lowrank import LowRank


def attention(base: str, count: int = 12) -> Adapter:
    layers = {}
    for path, shape in modules(base).items():
        if path.endswith(("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")) and len(layers) < count:
            layers[path] = LowRank(torch.randn(2, shape[1]), torch.randn(shape[0], 2), 4.0)
    return Adapter(layers, base, "attention")


@pytest.mark.parametrize("base", sorted(BASES))
def test_the_base_is_told_from_the_tensors(base: str, tmp_path: Path) -> None:
    path = save(attention(base), tmp_path / "a.safetensors")
    save_file(load_file(path), path)
    report = inspect(path)
    assert report.base == base and report.confidence > 0.9 and report.complete
    assert report.dialect == BASES[base].dialect


def test_a_wrong_base_names_both(tmp_path: Path) -> None:
    path = save(attention("sdxl"), tmp_path / "a.safetensors")
    with pytest.raises(
        BaseMismatchError, match=r"made for sdxl, but the base is sd15 \(100% of its modules fit\)"
    ):
        load(path, base="sd15")
    with pytest.raises(BaseMismatchError, match="but the base is flux"):
        load(path, base="flux")
    assert load(path, base="sdxl").base == "sdxl"


def test_files_for_no_known_base_and_files_without_loras(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {
            "lora_unet_nowhere.lora_down.weight": torch.zeros(1, 2),
            "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 1),
        },
        path,
    )
    with pytest.raises(FormatError, match=r"fits none of the bases glyph, sd15.*lora_unet_nowhere"):
        load(path)
    with pytest.raises(BaseMismatchError, match="made for an unknown base, but the base is glyph"):
        load(path, base="glyph")
    save_file({"model.diffusion_model.conv.weight": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match=r"holds no LoRA tensors.*whole checkpoint"):
        load(path)


def test_ties_go_to_the_base_that_the_header_names(tmp_path: Path) -> None:
    prefix = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {
        f"{prefix}.lora_down.weight": torch.zeros(1, 768),
        f"{prefix}.lora_up.weight": torch.zeros(768, 1),
    }
    path = tmp_path / "a.safetensors"
    for version in ("sdxl_base_v1-0", "flux1"):
        save_file(tensors, path, metadata={"ss_base_model_version": version})
        assert BASES[load(path).base].kohya_version == version
        assert inspect(path).confidence == 0.5
        assert load(path, base="sd3").base == "sd3"


def test_tensors_without_a_place_are_counted_and_named(tmp_path: Path) -> None:
    path = save(attention("sd15"), tmp_path / "a.safetensors")
    tensors = load_file(path) | {f"lora_unet_extra_{i}.lora_down.weight": torch.zeros(1, 2) for i in range(5)}
    tensors["strange"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(PartialLoadError, match=r"6 of 42 tensors have no place in sd15: .*and 3 more; allow"):
        load(path)
    assert len(load(path, allow_partial=True).layers) == 12
    report = inspect(path)
    assert len(report.unmatched) == 6 and not report.complete
    assert report.unmatched["strange"] == "unknown kind of tensor"


def test_a_layer_of_the_wrong_shape_has_no_place(tmp_path: Path) -> None:
    path = save(attention("sd15"), tmp_path / "a.safetensors")
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("lora_up.weight"))
    save_file(tensors | {key: torch.zeros(7, 2)}, path)
    with pytest.raises(PartialLoadError, match=r"its shape does not fit sd15's unet.down_blocks"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_reported(value: float, tmp_path: Path) -> None:
    path = save(attention("sd15"), tmp_path / "a.safetensors")
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("lora_up.weight"))
    tensors[key][3, 1] = value
    save_file(tensors, path)
    with pytest.raises(FormatError, match=f"the tensor '{key}' holds NaN or infinite values"):
        load(path)
    assert len(load(path, allow_partial=True).layers) == 11
    report = inspect(path)
    assert len(report.damaged) == 1 and not report.complete and len(report.rows) == 11
    json.dumps(report.to_dict(), allow_nan=False)


def test_zero_layers_and_outliers_are_reported(tmp_path: Path) -> None:
    adapter = attention("sd15", 48)
    layers = dict(adapter.layers)
    zero, loud = [path for path in layers if path.endswith("attn1.to_q")][:2]
    layers[zero] = LowRank(layers[zero].down, torch.zeros_like(layers[zero].up))
    layers[loud] = layers[loud].scaled(300.0)
    report = inspect(save(Adapter(layers, "sd15", "odd"), tmp_path / "a.safetensors"))
    assert report.zero == (zero,) and list(report.outliers) == [loud] and report.outliers[loud] > 6
    row = next(row for row in report.rows if row.path == loud)
    assert row.norm == pytest.approx(float(layers[loud].delta().norm()), rel=1e-5)
    assert row.rank == 2 and row.scale == row.alpha / 2


def test_an_adapter_name_inside_peft_keys_and_no_weight_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    down, up = torch.randn(2, 320), torch.randn(320, 2)
    inside = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for stem, ends in (
        (f"base_model.model.{inside}", (".lora_A.default.weight", ".lora_B.default.weight")),
        (f"unet.{inside}", (".lora_A", ".lora_B")),
        (inside, (".lora_A.weight", ".lora_B.weight")),
        (f"unet.{inside}", (".lora.down.weight", ".lora.up.weight")),
    ):
        save_file({f"{stem}{ends[0]}": down, f"{stem}{ends[1]}": up}, path)
        assert torch.equal(load(path, base="sd15").layers[f"unet.{inside}"].up, up)


def test_strength_that_only_the_header_states(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    inside = "transformer_blocks.0.attn.to_q"
    tensors = {
        f"transformer.{inside}.lora_A.weight": torch.randn(4, 3072),
        f"transformer.{inside}.lora_B.weight": torch.randn(3072, 4),
    }

    def scale(config: dict[str, object]) -> float:
        text = json.dumps({f"transformer.{key}": value for key, value in config.items()})
        save_file(tensors, path, metadata={"lora_adapter_metadata": text})
        return load(path).layers[f"transformer.{inside}"].scale

    assert scale({"r": 4, "lora_alpha": 8}) == 2.0
    assert scale({"r": 8, "lora_alpha": 8, "alpha_pattern": {f"^{inside}": 2}}) == 0.5
    assert scale({"r": 8, "lora_alpha": 8, "alpha_pattern": {"attn.to_q": 1, "to_q": 2}}) == 0.25
    assert scale({"r": 8, "lora_alpha": 8, "alpha_pattern": {"(a+)+$": 2}}) == 2.0
    assert scale({"r": 4, "lora_alpha": 8, "use_rslora": True}) == 4.0
    assert scale({"r": 4, "lora_alpha": None}) == 1.0
    save_file(tensors, path)
    assert load(path).layers[f"transformer.{inside}"].scale == 1.0
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert load(path).layers[f"transformer.{inside}"].scale == 0.5


def test_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    for base in ("sdxl", "custom"):
        table = shapes_of("sdxl")
        adapter = random_adapter(table, alpha=2.0, base=base, name="a")
        path = save(adapter, tmp_path / "a.safetensors", modules=table)
        loaded = load(path, base=base, modules=table)
        assert loaded.base == base and list(loaded.layers) == list(adapter.layers)
        for name, layer in adapter.layers.items():
            assert torch.equal(loaded.layers[name].delta(), layer.delta())
    with pytest.raises(FormatError, match="fits none"):
        load(path)


def test_a_layer_under_two_names_is_one_too_many(tmp_path: Path) -> None:
    path, name = tmp_path / "a.safetensors", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = torch.ones(2, 320), torch.ones(320, 2)
    flat = f"lora_unet_{name.replace('.', '_')}"
    tensors = dict(zip((f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"), pair, strict=True))
    other = {f"unet.{name}.lora_{side}.weight": 2 * values for side, values in zip("AB", pair, strict=True)}
    save_file(tensors | other, path)
    report = inspect(path)
    assert set(report.unmatched) == set(other) and len(report.rows) == 1
    assert all("is there already as" in reason for reason in report.unmatched.values())
    with pytest.raises(PartialLoadError, match="is there already as"):
        load(path)
    assert torch.equal(load(path, allow_partial=True).layers[f"unet.{name}"].down, pair[0])
