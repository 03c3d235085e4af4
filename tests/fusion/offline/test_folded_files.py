"""Folding into checkpoints of a single file, under the names that the published ones have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import BaseMismatchError, FormatError, UsageError
from loracomp.fusion.offline import fold_checkpoint
from loracomp.fusion.offline.checkpoint_names import places
from loracomp.fusion.offline.lineage import LINEAGE
from loracomp.lowrank import LowRank


def _adapter(base: str, paths: list[str], rank: int = 2) -> Adapter:
    table, generator = modules(base), torch.Generator().manual_seed(3)

    def layer(shape: tuple[int, ...]) -> LowRank:
        down = torch.randn((rank, *shape[1:]), generator=generator)
        return LowRank(down, torch.randn((shape[0], rank, *[1] * (len(shape) - 2)), generator=generator), 1.0)

    return Adapter({path: layer(table[path]) for path in paths}, base, "some")


# Names as they are in the published checkpoints.
KNOWN = {
    "sd15": {
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": "unet.down_blocks.0.resnets.0.conv1",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
        ),
        "model.diffusion_model.output_blocks.3.1.proj_in.weight": "unet.up_blocks.1.attentions.0.proj_in",
        "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight": (
            "text_encoder.text_model.encoder.layers.3.mlp.fc1"
        ),
    },
    "sdxl": {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.v_proj.weight": (
            "text_encoder.text_model.encoder.layers.0.self_attn.v_proj"
        ),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.weight": (
            "text_encoder_2.text_model.encoder.layers.9.mlp.fc2"
        ),
    },
    "flux": {
        "double_blocks.3.img_attn.proj.weight": "transformer.transformer_blocks.3.attn.to_out.0",
        "txt_in.weight": "transformer.context_embedder",
    },
}


@pytest.mark.parametrize("base", KNOWN)
def test_single_files_are_folded_under_their_own_names(tmp_path: Path, base: str) -> None:
    table, names = modules(base), KNOWN[base]
    tensors = {key: torch.randn(table[path]).bfloat16() for key, path in names.items()}
    tensors |= {"other.bias": torch.randn(5), "position_ids": torch.arange(7)}
    source, target = tmp_path / "base.safetensors", tmp_path / "new.safetensors"
    save_file(tensors, source, {"modelspec.title": "a base", "modelspec.hash_sha256": "0x12"})
    one = _adapter(base, list(names.values()))
    report = fold_checkpoint(source, target, [one], [0.5])
    new = load_file(target)
    for key, path in names.items():
        exact = tensors[key].float() + 0.5 * one.layers[path].delta()
        # One bfloat16 step: sums that lie between two values may round either way.
        torch.testing.assert_close(new[key].float(), exact.bfloat16().float(), rtol=2**-7, atol=1e-6)
        assert new[key].dtype == torch.bfloat16
    assert torch.equal(new["other.bias"], tensors["other.bias"])
    assert torch.equal(new["position_ids"], tensors["position_ids"])
    assert 1e-4 < report.loss < 0.01
    with safe_open(target, "pt") as opened:
        header = opened.metadata()
    assert header["modelspec.title"] == "a base"
    assert "modelspec.hash_sha256" not in header
    assert json.loads(header[LINEAGE])["operation"] == "fold"


def test_fused_attention_of_open_clip_is_folded_row_by_row(tmp_path: Path) -> None:
    stem = "text_encoder_2.text_model.encoder.layers.5.self_attn."
    one = _adapter("sdxl", [f"{stem}k_proj", f"{stem}v_proj"])
    key = "conditioner.embedders.1.model.transformer.resblocks.5.attn.in_proj_weight"
    weight = torch.randn(3840, 1280)
    save_file({key: weight, "x": torch.ones(1)}, tmp_path / "a.safetensors")
    fold_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [one])
    delta = load_file(tmp_path / "b.safetensors")[key] - weight
    assert not delta[:1280].any()
    torch.testing.assert_close(delta[1280:2560], one.layers[f"{stem}k_proj"].delta(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(delta[2560:], one.layers[f"{stem}v_proj"].delta(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3", "flux"])
def test_every_trainable_layer_has_a_name_in_single_files(base: str) -> None:
    named = {piece.path for place in places(base) for piece in place.module.pieces}
    layers = {path for path in modules(base) if not path.startswith("text_encoder") or ".layers." in path}
    unnamed = {path for path in layers - named if "time_embed" not in path and "embedding" not in path}
    assert not {path for path in unnamed if path.split(".")[0] in ("unet", "transformer")}
    assert not {path for path in unnamed if path.endswith(("_proj", "fc1", "fc2"))}


def test_checkpoints_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source, target = tmp_path / "base.safetensors", tmp_path / "new.safetensors"
    path = "unet.mid_block.attentions.0.proj_in"
    one = _adapter("sd15", [path])
    save_file({"x": torch.ones(2)}, source)
    with pytest.raises(BaseMismatchError, match=r"1 of 1 layers .* such as unet\.mid_block"):
        fold_checkpoint(source, target, [one])
    save_file({"model.diffusion_model.middle_block.1.proj_in.weight": torch.ones(4, 4)}, source)
    with pytest.raises(BaseMismatchError, match="shape"):
        fold_checkpoint(source, target, [one])
    save_file(
        {"model.diffusion_model.middle_block.1.proj_in.weight": torch.ones(1280, 1280, 1, 1).half()}, source
    )
    with pytest.raises(UsageError, match="does not fit into"):
        fold_checkpoint(source, target, [one], [1e6])
    with pytest.raises(UsageError, match="pristine"):
        fold_checkpoint(source, source, [one])
    with pytest.raises(UsageError, match="known base"):
        fold_checkpoint(source, target, [Adapter(one.layers, "custom")])
    with pytest.raises(FormatError, match="no such file"):
        fold_checkpoint(tmp_path / "nothing.safetensors", target, [one])
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="model_index"):
        fold_checkpoint(tmp_path / "folder", tmp_path / "out", [one])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "folder"]
