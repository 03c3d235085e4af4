"""What a written file says of itself, and what happens when it cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import UnknownNameError, UsageError
from loracomp.formats import hashes, inspect, load, save
from loracomp.lowrank import LowRank

PATHS = ("unet.mid_block.attentions.0.proj_in", "unet.mid_block.resnets.0.conv1")


def adapter(base: str = "sd15", alpha: float | None = 2.0) -> Adapter:
    linear = LowRank(torch.randn(4, 1280, 1, 1), torch.randn(1280, 4, 1, 1), alpha)
    conv = LowRank(torch.randn(2, 1280, 3, 3), torch.randn(1280, 2, 1, 1), alpha)
    return Adapter(
        dict(zip(PATHS, (linear, conv), strict=True)), base, "kite", {"modelspec.trigger_phrase": "kt, kite"}
    )


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_metadata_name_base_strength_and_identity(tmp_path: Path) -> None:
    path = save(adapter(), tmp_path / "kite.safetensors", metadata={"modelspec.author": "me"})
    strings = header(path)
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "sd-scripts",
        "modelspec.title": "kite",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "kt, kite",
        "modelspec.author": "me",
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "kite",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "2",
    }
    assert expected.items() <= strings.items()
    assert load(path).trigger_words == ("kt", "kite")


def test_hashes_are_of_the_tensors_and_of_the_file(tmp_path: Path) -> None:
    path = save(adapter(), tmp_path / "kite.safetensors")
    raw = path.read_bytes()
    tensors = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    found, strings = hashes(path), header(path)
    assert found == {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "autov2": hashlib.sha256(raw).hexdigest()[:10],
        "autov3": tensors[:12],
        "sshs_model_hash": tensors,
    }
    assert strings["sshs_model_hash"] == tensors and strings["modelspec.hash_sha256"] == f"0x{tensors}"
    retitled = save(load(path), tmp_path / "b.safetensors", metadata={"modelspec.title": "other"})
    assert hashes(retitled)["autov3"] == found["autov3"] and hashes(retitled)["autov2"] != found["autov2"]


def test_legacy_hash_is_that_of_64_kib_at_one_mib() -> None:
    from loracomp.formats.hashing import legacy_hash

    data = bytes(range(256)) * 8192
    expected = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    for size in (1, 1000, 1 << 16, 1 << 22):
        if size > 1:
            assert legacy_hash(data[i : i + size] for i in range(0, len(data), size)) == expected
    assert legacy_hash([b"short"]) == hashlib.sha256(b"").hexdigest()[:8]


def test_dialects_without_alpha_tensors_state_it_and_fold_it(tmp_path: Path) -> None:
    source = adapter(alpha=8.0)
    path = save(source, tmp_path / "kite.safetensors", dialect="diffusers")
    stated = json.loads(header(path)["lora_adapter_metadata"])
    assert stated["unet.r"] == stated["unet.lora_alpha"]
    assert stated["unet.rank_pattern"] == stated["unet.alpha_pattern"]
    tensors = load_file(path)
    layer = source.layers[PATHS[0]]
    written = LowRank(tensors[f"{PATHS[0]}.lora_A.weight"], tensors[f"{PATHS[0]}.lora_B.weight"])
    assert torch.equal(written.delta(), layer.delta())


def test_the_default_dialect_is_the_one_of_the_base(tmp_path: Path) -> None:
    assert any(k.startswith("lora_unet_") for k in load_file(save(adapter(), tmp_path / "a.safetensors")))
    flux = "transformer.transformer_blocks.0.attn.to_q"
    dit = Adapter({flux: LowRank(torch.randn(2, 3072), torch.randn(3072, 2))}, "flux", "dit")
    assert f"{flux}.lora_A.weight" in load_file(save(dit, tmp_path / "b.safetensors"))


def test_outputs_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for bad in ("missing/a.safetensors", "folder", "file/a.safetensors", "n" * 300):
        with pytest.raises(UsageError, match="cannot be written") as caught:
            save(adapter(), tmp_path / bad)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(adapter(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        save(adapter(alpha=1.0), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_permissions_follow_the_mask_and_the_old_file(tmp_path: Path) -> None:
    path = save(adapter(), tmp_path / "a.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o600)
    assert save(adapter(), path).stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UnknownNameError, match="did you mean kohya"):
        save(adapter(), path, dialect="koyha")
    with pytest.raises(UsageError, match=r"does not fit into torch.float16"):
        save(adapter().scaled(1e7), path, dialect="diffusers", dtype=torch.float16)
    with pytest.raises(UsageError, match="no floating-point type"):
        save(adapter(), path, dtype=torch.int8)
    with pytest.raises(UsageError, match="no layers"):
        save(Adapter({}, "sd15"), path, dialect="diffusers")
    with pytest.raises(UsageError, match="has no kohya name for the layer"):
        save(Adapter({"unet.nowhere": adapter().layers[PATHS[0]]}, "sd15"), path)
    with pytest.raises(UsageError, match="is not finite"):
        save(adapter(alpha=None).map(lambda layer: LowRank(layer.down * torch.nan, layer.up)), path)
    assert not path.exists()


def test_comfyui_names_are_those_of_its_own_modules(tmp_path: Path) -> None:
    """The names that ComfyUI looks up: ``diffusion_model.*`` and ``text_encoders.*``."""
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    image = "transformer.transformer_blocks.3.attn"
    expected = {
        "sdxl": {
            f"unet.{block}": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            f"text_encoder.{text}": f"text_encoders.clip_l.transformer.{text}",
            f"text_encoder_2.{text}": f"text_encoders.clip_g.transformer.{text}",
        },
        "flux": {
            f"{image}.to_q": "diffusion_model.double_blocks.3.img_attn.qkv",
            f"{image}.to_out.0": "diffusion_model.double_blocks.3.img_attn.proj",
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (
                "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
            ),
        },
        "sd3": {f"{image}.add_k_proj": "diffusion_model.joint_blocks.3.context_block.attn.qkv"},
    }
    for base, names in expected.items():
        layers = {
            path: LowRank(torch.randn(2, modules(base)[path][1]), torch.randn(modules(base)[path][0], 2), 8.0)
            for path in names
        }
        path = save(Adapter(layers, base, "a"), tmp_path / "a.safetensors", dialect="comfyui")
        parts = ("alpha", "lora_down.weight", "lora_up.weight")
        assert set(load_file(path)) == {f"{name}.{part}" for name in names.values() for part in parts}
        assert load(path).layers.keys() == layers.keys() and inspect(path).dialect == "comfyui"
        assert all(layer.scale == 4.0 for layer in load(path).layers.values())
