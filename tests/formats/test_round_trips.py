"""Laws of reading and writing: identity, stable bytes, strength, splitting and joining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loracomp.adapter import Adapter
from loracomp.bases import BASES, modules
from loracomp.formats import DIALECTS, load, save
from loracomp.formats.health import kind
from loracomp.formats.names import layout
from loracomp.formats.native import native
from loracomp.formats.pieces import join, split
from loracomp.lowrank import LowRank, concatenate, norm


def one_of_each(base: str, alphas: tuple[float | None, ...], dtype: torch.dtype = torch.float16) -> Adapter:
    """An adapter on the first layer of every kind that a base has; alphas and ranks vary by layer."""
    generator = torch.Generator().manual_seed(1)
    layers, seen = {}, set()
    for path, shape in modules(base).items():
        if kind(path) in seen:
            continue
        seen.add(kind(path))
        rank, alpha = 1 + len(layers) % 3, alphas[len(layers) % len(alphas)]
        down = torch.randn((rank, *shape[1:]), generator=generator).to(dtype)
        up = torch.randn((shape[0], rank, *(1,) * (len(shape) - 2)), generator=generator).to(dtype)
        layers[path] = LowRank(down, up, alpha)
    return Adapter(layers, base, "one")


def assert_same(first: Adapter, second: Adapter, tolerance: float = 0.0) -> None:
    assert list(first.layers) == list(second.layers)
    for path, layer in first.layers.items():
        other = second.layers[path]
        assert other.weight_shape == layer.weight_shape and other.up.dtype == layer.up.dtype, path
        if tolerance == 0:
            assert torch.equal(other.down, layer.down) and torch.equal(other.up, layer.up), path
            assert other.scale == layer.scale, path
        else:
            pair = [layer.to(dtype=torch.float64), other.to(dtype=torch.float64).scaled(-1)]
            assert norm(concatenate(pair)) <= tolerance * norm(layer), path


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("base", sorted(BASES))
def test_save_then_load_is_the_identity(base: str, dialect: str, tmp_path: Path) -> None:
    adapter = one_of_each(base, (None,))
    path = save(adapter, tmp_path / "one.safetensors", dialect=dialect)
    loaded = load(path)
    assert loaded.base == base and loaded.name == "one"
    assert_same(adapter, loaded)
    again = save(loaded, tmp_path / "one2.safetensors", dialect=dialect)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("base", sorted(BASES))
def test_strength_survives_any_alpha(base: str, dialect: str, tmp_path: Path) -> None:
    adapter = one_of_each(base, (None, 8.0, 0.5, 3.0, 1e-3, -2.0), torch.float32)
    loaded = load(save(adapter, tmp_path / "one.safetensors", dialect=dialect))
    assert_same(adapter, loaded, 1e-6)
    again = load(save(loaded, tmp_path / "two.safetensors", dialect=dialect))
    assert_same(loaded, again)


def test_kohya_keeps_one_alpha_as_it_is_and_makes_several_one(tmp_path: Path) -> None:
    adapter = one_of_each("sdxl", (8.0,))
    assert_same(adapter, load(save(adapter, tmp_path / "one.safetensors", dialect="kohya")))
    mixed = one_of_each("sdxl", (8.0, 2.0, 0.5, 8.0), torch.float32)
    loaded = load(save(mixed, tmp_path / "two.safetensors", dialect="kohya"))
    assert {layer.alpha for layer in loaded.layers.values()} == {8.0}
    assert_same(mixed, loaded, 1e-7)
    split_already = save(one_of_each("flux", (8.0, 2.0)), tmp_path / "three.safetensors", dialect="kohya")
    assert {layer.alpha for layer in load(split_already).layers.values()} >= {8.0, 2.0}


def test_shrinking_does_not_underflow_in_half_precision(tmp_path: Path) -> None:
    small = LowRank(torch.randn(4, 320).half(), torch.full((320, 4), 1e-4).half(), 0.125)
    adapter = Adapter(
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": small}, "sd15", "small"
    )
    assert_same(adapter, load(save(adapter, tmp_path / "a.safetensors", dialect="diffusers")), 1e-4)


def test_equal_adapters_make_equal_bytes_in_any_order(tmp_path: Path) -> None:
    adapter = one_of_each("sd15", (2.0,))
    turned = Adapter(dict(reversed(adapter.layers.items())), "sd15", "one", {"b": "2", "a": "1"})
    first = save(Adapter(adapter.layers, "sd15", "one", {"a": "1", "b": "2"}), tmp_path / "a.safetensors")
    assert first.read_bytes() == save(turned, tmp_path / "b.safetensors").read_bytes()


def test_dtype_of_a_written_file(tmp_path: Path) -> None:
    adapter = one_of_each("sd15", (3.0,), torch.float32)
    path = save(adapter, tmp_path / "a.safetensors", dialect="diffusers", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert_same(adapter.to(dtype=torch.bfloat16), load(path), 2**-7)


@pytest.mark.parametrize(
    ("base", "name"), [("flux", "single_blocks.0.linear1"), ("sd3", "joint_blocks.0.x_block.attn.qkv")]
)
def test_fused_matrices_split_as_the_rows_of_the_product(base: str, name: str) -> None:
    module = native(modules(base), "transformer")[name]
    fused = LowRank(torch.randn(4, module.shape[1]), torch.randn(module.shape[0], 4), 2.0)
    parts = split(fused, module)
    probe = torch.randn(module.shape[1], 3)
    whole = fused.up @ (fused.down @ probe) * 0.5
    for piece in module.pieces:
        rows = torch.cat([whole[start:stop] for start, stop in piece.rows])
        part = parts[piece.path]
        assert torch.allclose(part.up @ (part.down @ probe) * part.scale, rows, atol=1e-4)
    joined = join(parts, module)
    assert joined.rank == 4 and torch.equal(joined.up, fused.up) and torch.equal(joined.down, fused.down)


def test_joining_keeps_ranks_scales_and_absent_layers() -> None:
    module = native(modules("flux"), "transformer")["double_blocks.0.img_attn.qkv"]
    q, k, v = (piece.path for piece in module.pieces)
    cases: tuple[dict[str, tuple[int, float | None]], ...] = (
        {q: (2, 4.0), k: (2, 4.0), v: (2, 4.0)},
        {q: (2, 4.0), k: (3, 6.0), v: (1, 2.0)},
        {q: (2, 1.0), v: (5, 7.0)},
        {k: (3, None)},
    )
    for case in cases:
        layers = {
            path: LowRank(torch.randn(r, 3072), torch.randn(3072, r), a) for path, (r, a) in case.items()
        }
        parts = split(join(layers, module), module)
        assert set(parts) == set(case)
        for path, layer in layers.items():
            assert parts[path].rank == layer.rank
            assert norm(concatenate([parts[path], layer.scaled(-1)])) <= 1e-6 * norm(layer)


def test_the_last_norms_have_scale_and_shift_in_the_other_order() -> None:
    for base in ("flux", "sd3"):
        module = native(modules(base), "transformer")["final_layer.adaLN_modulation.1"]
        half = module.shape[0] // 2
        update = LowRank(torch.randn(1, module.shape[1]), torch.randn(module.shape[0], 1))
        (part,) = split(update, module).values()
        assert torch.equal(part.up, torch.cat([update.up[half:], update.up[:half]]))
        assert torch.equal(join(split(update, module), module).up, update.up)


def test_names_are_generated_and_never_ambiguous() -> None:
    from loracomp.formats.names import _pairs, every_name

    for base in BASES:
        owners: dict[str, object] = {}
        for name, module, _ in _pairs(layout(base)):
            assert owners.setdefault(name, module.pieces) == module.pieces, name
        assert every_name(layout(base)).keys() == owners.keys()


KNOWN = {
    "sd15": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0": "attn1.to_out.0",
        "lora_unet_mid_block_attentions_0_proj_in": "mid_block.attentions.0.proj_in",
        "lora_te_text_model_encoder_layers_11_mlp_fc1": "layers.11.mlp.fc1",
        "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.processor.to_out_lora": "attn2.to_out.0",
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "lora_unet_input_blocks_8_0_skip_connection": None,
        "lora_unet_middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
        "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj": (
            "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj"
        ),
        "lora_unet_label_emb_0_0": "add_embedding.linear_1",
        "lora_unet_out_2": "conv_out",
        "lora_te2_text_projection": "text_encoder_2.text_projection",
    },
    "sd3": {"lora_unet_joint_blocks_23_context_block_attn_qkv": "transformer_blocks.23.attn.add_q_proj"},
    "flux": {
        "lora_unet_double_blocks_18_txt_mlp_2": "transformer_blocks.18.ff_context.net.2",
        "lora_unet_single_blocks_37_linear2": "single_transformer_blocks.37.proj_out",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
        ),
    },
}


@pytest.mark.parametrize("base", KNOWN)
def test_known_names_of_other_tools(base: str) -> None:
    from loracomp.formats.names import every_name

    names = every_name(layout(base))
    for name, ending in KNOWN[base].items():
        if ending is None:
            assert name not in names
        else:
            assert names[name].module.pieces[0].path.endswith(ending)


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**12, 1e-3, 0.0, -(2.0**-9)])
def test_strong_and_weak_scales_fit_into_half_precision(dialect: str, scale: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    down = (torch.rand(4, 1280, generator=generator) + 0.5).half() * 0.03
    up = (torch.rand(1280, 4, generator=generator) + 0.5).half() * 0.01
    paths = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k")]
    layers = {paths[0]: LowRank(down, up, 4 * scale), paths[1]: LowRank(down, up, 4.0)}
    path = save(Adapter(layers, "sd15", "a"), tmp_path / "a.safetensors", dialect=dialect)
    for name, layer in load(path).layers.items():
        expected = layers[name].delta(torch.float64)
        missed = (layer.delta(torch.float64) - expected).norm()
        assert missed <= (1e-15 if scale != 1e-3 else 5e-4) * expected.norm(), name


def test_alphas_too_far_apart_for_one_stay_as_they_are(tmp_path: Path) -> None:
    down, up = torch.ones(1, 1280).half(), torch.ones(1280, 1).half()
    paths = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k")]
    layers = {paths[0]: LowRank(down, up, 16.0), paths[1]: LowRank(down, up, 1e-30)}
    path = save(Adapter(layers, "sd15", "a"), tmp_path / "a.safetensors", dialect="kohya")
    for name, layer in load(path).layers.items():
        assert layer.scale == pytest.approx(layers[name].scale, rel=1e-6) and torch.equal(layer.up, up)
